import type { Code } from "../base/codes.js";
import { ByteTable } from "../contracts/byte-table.js";
import { COMPRESSION_NONE, Envelope } from "../contracts/envelope.js";
import { PayloadChecker } from "../contracts/payload.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import { slotOf } from "../contracts/slot.js";
import type { Grant } from "../tenancy/grant.js";
import type { HeldTypes } from "./held-types.js";

/** What an event may have beside its payload: ids, attributes, fields that nobody knows. */
export const ENVELOPE_BYTES = 256 * 1024;

interface PayloadType {
  readonly name: string;
  readonly checker: PayloadChecker;
  readonly route: number;
}

/** A payload that still has to be unpacked; all else about its event is well. */
export interface Packed {
  readonly compression: number;
  readonly bytes: Buffer;
  readonly checker: PayloadChecker;
}

/** Everything one event is checked for before it enters the stream, without making objects for it. */
export class EventGate {
  private readonly envelope = new Envelope();
  private readonly types: ByteTable<PayloadType>;
  private readonly maxPayloadBytes: number;
  private readonly held: Pick<HeldTypes, "has">;
  /** The outlet of the event that was checked last. */
  route = 0;

  /** Payloads may have `maxPayloadBytes`, packed and unpacked. `routeOf` tells a type's outlet. */
  constructor(
    registry: ProtoRegistry,
    maxPayloadBytes: number,
    held: Pick<HeldTypes, "has">,
    routeOf: (entityType: string) => number,
  ) {
    const names = registry.entityTypes();
    this.types = new ByteTable(names.length);
    for (const name of names) {
      const bytes = Buffer.from(name);
      const checker = new PayloadChecker(registry.entityType(name)!);
      this.types.add(bytes, 0, bytes.length, { name, checker, route: routeOf(name) });
    }
    this.maxPayloadBytes = maxPayloadBytes;
    this.held = held;
  }

  /**
   * The code with which bytes[start, end) are refused; undefined when they are an event this grant may publish; its
   * payload when only that is left to look at.
   */
  check(bytes: Buffer, start: number, end: number, grant: Grant): Code | Packed | undefined {
    if (end - start > this.maxPayloadBytes + ENVELOPE_BYTES) return "TRB-EVENT-PAYLOAD-SIZE";
    const envelope = this.envelope;
    const code = envelope.read(bytes, start, end);
    if (code !== undefined) return code;
    if (!grant.allowsTenantBytes(bytes, envelope.tenantStart, envelope.tenantEnd)) return "TRB-AUTH-TENANT";
    const type = this.types.get(bytes, envelope.typeStart, envelope.typeEnd);
    if (type === undefined) return "TRB-EVENT-ENTITY-TYPE";
    if (!grant.allowsEntityType(type.name)) return "TRB-AUTH-ENTITY-TYPE";
    this.route = type.route;
    if (envelope.referenceStart >= 0) return "TRB-EVENT-REFERENCE";
    const { payloadStart, payloadEnd, compression } = envelope;
    if (payloadEnd - payloadStart > this.maxPayloadBytes) return "TRB-EVENT-PAYLOAD-SIZE";
    if (payloadStart >= 0 && compression === COMPRESSION_NONE) {
      if (!type.checker.check(bytes, payloadStart, payloadEnd)) return "TRB-EVENT-PAYLOAD-DECODE";
    }
    if (this.held.has(type.name)) return "TRB-BUS-TABLE-HELD";
    if (payloadStart < 0 || compression === COMPRESSION_NONE) return undefined;
    return { compression, bytes: bytes.subarray(payloadStart, payloadEnd), checker: type.checker };
  }

  /** The slot of the event that was checked last. */
  slot(): number {
    return slotOf(this.envelope);
  }
}
