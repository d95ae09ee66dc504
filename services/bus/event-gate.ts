import type { Code } from "../base/codes.js";
import { ByteTable } from "../contracts/byte-table.js";
import { COMPRESSION_NONE, Envelope } from "../contracts/envelope.js";
import { partitionOf } from "../contracts/partition.js";
import { PayloadChecker } from "../contracts/payload.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import { unpackPayload } from "../contracts/unpack.js";
import type { Grant } from "../tenancy/grant.js";

interface PayloadType {
  readonly name: string;
  readonly checker: PayloadChecker;
}

/** Everything one event is checked for before it enters the stream, without making objects for it. */
export class EventGate {
  private readonly envelope = new Envelope();
  private readonly types: ByteTable<PayloadType>;
  private readonly maxPayloadBytes: number;
  private readonly partitions: number;

  /** Payloads may have `maxPayloadBytes`, packed and unpacked; events spread over `partitions` partitions. */
  constructor(registry: ProtoRegistry, maxPayloadBytes: number, partitions: number) {
    const names = registry.entityTypes();
    this.types = new ByteTable(names.length);
    for (const name of names) {
      const bytes = Buffer.from(name);
      const checker = new PayloadChecker(registry.entityType(name)!);
      this.types.add(bytes, 0, bytes.length, { name, checker });
    }
    this.maxPayloadBytes = maxPayloadBytes;
    this.partitions = partitions;
  }

  /** The code with which bytes[start, end) are refused; undefined when they are an event this grant may publish. */
  check(bytes: Buffer, start: number, end: number, grant: Grant): Code | undefined {
    const envelope = this.envelope;
    const code = envelope.read(bytes, start, end);
    if (code !== undefined) return code;
    if (!grant.allowsTenantBytes(bytes, envelope.tenantStart, envelope.tenantEnd)) return "TRB-AUTH-TENANT";
    const type = this.types.get(bytes, envelope.typeStart, envelope.typeEnd);
    if (type === undefined) return "TRB-EVENT-ENTITY-TYPE";
    if (!grant.allowsEntityType(type.name)) return "TRB-AUTH-ENTITY-TYPE";
    if (envelope.referenceStart >= 0) return "TRB-EVENT-REFERENCE";
    if (envelope.payloadStart < 0) return undefined;
    if (envelope.payloadEnd - envelope.payloadStart > this.maxPayloadBytes) return "TRB-EVENT-PAYLOAD-SIZE";
    if (envelope.compression !== COMPRESSION_NONE) return this.checkPacked(type);
    return type.checker.check(bytes, envelope.payloadStart, envelope.payloadEnd)
      ? undefined
      : "TRB-EVENT-PAYLOAD-DECODE";
  }

  /** The partition of the event that was checked last. */
  partition(): number {
    return partitionOf(this.envelope, this.partitions);
  }

  private checkPacked(type: PayloadType): Code | undefined {
    const { bytes, payloadStart, payloadEnd, compression } = this.envelope;
    const packed = bytes.subarray(payloadStart, payloadEnd);
    const plain = unpackPayload(compression, packed, this.maxPayloadBytes);
    if (typeof plain === "string") return plain;
    return type.checker.check(plain, 0, plain.length) ? undefined : "TRB-EVENT-PAYLOAD-DECODE";
  }
}
