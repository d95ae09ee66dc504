import type { Code } from "../base/codes.js";
import type { Config } from "../base/config.js";
import { ByteTable } from "../contracts/byte-table.js";
import { COMPRESSION_NONE, Envelope } from "../contracts/envelope.js";
import { PayloadChecker } from "../contracts/payload.js";
import { type PayloadReference, referenceOf } from "../contracts/payload-reference.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import { slotOf } from "../contracts/slot.js";
import { traceparentOf } from "../contracts/traceparent.js";
import type { Grant } from "../tenancy/grant.js";
import type { HeldTypes } from "./held-types.js";

/** What an event may have beside its payload: ids, attributes, fields that nobody knows. */
export const ENVELOPE_BYTES = 256 * 1024;

/** So small a payload travels in its event: each that does not costs requests to the store and an object that stays. */
const LEAST_REFERRED_BYTES = 64 * 1024;

/** The least bytes that a payload has which is referred to, so that none is too large for the one and small for the other. */
export const leastReferred = (maxPayloadBytes: number): number =>
  Math.min(LEAST_REFERRED_BYTES, maxPayloadBytes + 1);

interface PayloadType {
  readonly name: string;
  readonly checker: PayloadChecker;
  readonly route: number;
}

/** What is still to be done about an event with which all else is well. */
export type Pending = Packed | Large | Referring;

/** Its payload has to be unpacked and looked at. */
interface Packed {
  readonly kind: "packed";
  readonly compression: number;
  readonly bytes: Buffer;
  readonly checker: PayloadChecker;
}

/** Its payload goes to the object store. Whether it decodes is found out where it lands. */
interface Large {
  readonly kind: "large";
  readonly tenant: string;
  readonly typeUrl: string;
  readonly bytes: Buffer;
}

/** Its producer says that the payload is in the object store. */
interface Referring {
  readonly kind: "referring";
  readonly reference: PayloadReference;
  /** As it is packed, if it is. */
  readonly compression: number;
}

type Sizes = Pick<Config["bus"], "maxPayloadBytes" | "maxOffloadBytes">;

/** Everything one event is checked for before it enters the stream, without making objects for it. */
export class EventGate {
  /** Of the event that was checked last. */
  readonly envelope = new Envelope();
  private readonly types: ByteTable<PayloadType>;
  private readonly sizes: Sizes;
  private readonly mostBytes: number;
  private readonly held: Pick<HeldTypes, "has">;
  private readonly leastVersion: 0 | 1;
  /** The outlet of the event that was checked last. */
  route = 0;

  /** `routeOf` tells a type's outlet. `leastVersion` is 0 for a bootstrap, to which that version is reserved. */
  constructor(
    registry: ProtoRegistry,
    sizes: Sizes,
    held: Pick<HeldTypes, "has">,
    routeOf: (entityType: string) => number,
    leastVersion: 0 | 1 = 1,
  ) {
    const names = registry.entityTypes();
    this.types = new ByteTable(names.length);
    for (const name of names) {
      const bytes = Buffer.from(name);
      const checker = new PayloadChecker(registry.entityType(name)!);
      this.types.add(bytes, 0, bytes.length, { name, checker, route: routeOf(name) });
    }
    this.sizes = sizes;
    this.mostBytes = Math.max(sizes.maxPayloadBytes, sizes.maxOffloadBytes);
    this.held = held;
    this.leastVersion = leastVersion;
  }

  /**
   * The code with which bytes[start, end) are refused; undefined when they are an event this grant may publish; what is
   * left to do when only its payload is.
   */
  check(bytes: Buffer, start: number, end: number, grant: Grant): Code | Pending | undefined {
    const { maxPayloadBytes } = this.sizes;
    if (end - start > this.mostBytes + ENVELOPE_BYTES) return "TRB-EVENT-PAYLOAD-SIZE";
    const envelope = this.envelope;
    const code = envelope.read(bytes, start, end, this.leastVersion);
    if (code !== undefined) return code;
    if (!grant.allowsTenantBytes(bytes, envelope.tenantStart, envelope.tenantEnd)) return "TRB-AUTH-TENANT";
    const type = this.types.get(bytes, envelope.typeStart, envelope.typeEnd);
    if (type === undefined) return "TRB-EVENT-ENTITY-TYPE";
    if (!grant.allowsEntityType(type.name)) return "TRB-AUTH-ENTITY-TYPE";
    this.route = type.route;
    const { payloadStart, payloadEnd, compression } = envelope;
    const payloadBytes = payloadEnd - payloadStart;
    if (end - start - payloadBytes > ENVELOPE_BYTES) return "TRB-EVENT-PAYLOAD-SIZE";
    if (payloadBytes > maxPayloadBytes || envelope.referenceStart >= 0) return this.elsewhere(type.name);
    if (payloadStart >= 0 && compression === COMPRESSION_NONE) {
      if (!type.checker.check(bytes, payloadStart, payloadEnd)) return "TRB-EVENT-PAYLOAD-DECODE";
    }
    if (this.held.has(type.name)) return "TRB-BUS-TABLE-HELD";
    if (payloadStart < 0 || compression === COMPRESSION_NONE) return undefined;
    const payload = bytes.subarray(payloadStart, payloadEnd);
    return { kind: "packed", compression, bytes: payload, checker: type.checker };
  }

  /** An event whose payload does not travel with it. */
  private elsewhere(typeName: string): Code | Pending {
    const { envelope } = this;
    const { maxOffloadBytes } = this.sizes;
    if (this.held.has(typeName)) return "TRB-BUS-TABLE-HELD";
    const payload = envelope.payload();
    if (payload === undefined) {
      const reference = referenceOf(envelope);
      if (reference === undefined) return "TRB-EVENT-REFERENCE";
      if (reference.sizeBytes > maxOffloadBytes) return "TRB-EVENT-PAYLOAD-SIZE";
      return { kind: "referring", reference, compression: envelope.compression };
    }
    if (payload.length > maxOffloadBytes) return "TRB-EVENT-PAYLOAD-SIZE";
    return { kind: "large", tenant: envelope.tenantId(), typeUrl: envelope.typeUrl(), bytes: payload };
  }

  /** The trace of the event that was checked last. */
  traceparent(): string | undefined {
    return traceparentOf(this.envelope);
  }

  /** The slot of the event that was checked last. */
  slot(): number {
    return slotOf(this.envelope);
  }
}
