import { type EntityHash, entityHash, TenantOrdinals } from "./entity-hash.js";
import { TENANT } from "./order.js";

/**
 * Turns tenant and entity id into the key words of records (order.ts). One object for all tables of a context: tenants'
 * numbers never repeat and never change meaning while it lives, so records of a batch and of an index compare.
 */
export class EntityKeys {
  private readonly tenants = new TenantOrdinals();

  constructor(private readonly hash: EntityHash = entityHash) {}

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
    this.hash(id, idStart, idEnd, records, at);
    records[at + TENANT] = this.tenants.of(tenant, tenantStart, tenantEnd);
  }
}
