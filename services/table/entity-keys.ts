import { slotIn, slotsFor } from "../contracts/slot.js";
import { entityHash, TenantOrdinals } from "./entity-hash.js";
import { SLOT, TENANT } from "./order.js";

/**
 * Turns tenant and entity id into the key words of records (order.ts), for entities of one type. Tenants' numbers never
 * repeat and never change meaning while the process lives, so records of a batch and of an index compare.
 */
export class EntityKeys {
  private readonly type: Buffer;
  /** By tenant: what the slots of its entities have in common. */
  private readonly common: number[] = [];

  constructor(
    entityType: string,
    private readonly tenants = new TenantOrdinals(),
  ) {
    this.type = Buffer.from(entityType);
  }

  /** The number of a tenant by its name, as records here have it. */
  tenantOf(name: Uint8Array): number {
    return this.tenants.of(name, 0, name.length);
  }

  nameOf(tenant: number): Uint8Array {
    return this.tenants.nameOf(tenant);
  }

  /** Writes the key of a tenant in bytes[tenantStart, tenantEnd) and an entity in bytes[idStart, idEnd). */
  put(
    records: Uint32Array,
    at: number,
    tenant: Uint8Array,
    tenantStart: number,
    tenantEnd: number,
    id: Uint8Array,
    idStart: number,
    idEnd: number,
  ): void {
    const { type } = this;
    const ordinal = this.tenants.of(tenant, tenantStart, tenantEnd);
    this.common[ordinal] ??= slotsFor(tenant, tenantStart, tenantEnd, type, 0, type.length);
    entityHash(id, idStart, idEnd, records, at);
    records[at + SLOT] = slotIn(this.common[ordinal], id, idStart, idEnd);
    records[at + TENANT] = ordinal;
  }
}
