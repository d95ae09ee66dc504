import type { Code } from "../base/codes.js";
import * as wire from "./wire.js";

export const OPERATION_CREATED = 1;
export const OPERATION_UPDATED = 2;
export const OPERATION_DELETED = 3;

export const COMPRESSION_NONE = 0;
export const COMPRESSION_GZIP = 1;
export const COMPRESSION_ZSTD = 2;

const MAX_TENANT_BYTES = 128;
const MAX_ENTITY_ID_BYTES = 1024;
/** They are trace context and the like; each costs more than its bytes, in every process that it passes. */
const MOST_ATTRIBUTES = 256;
/** 1: may start a tenant id; 1 or 2: may follow. */
const tenantBytes = new Uint8Array(256);
for (const letter of "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") {
  tenantBytes[letter.charCodeAt(0)] = 1;
}
for (const letter of "._:-") tenantBytes[letter.charCodeAt(0)] = 2;

/** The one rule for tenant ids, [A-Za-z0-9][A-Za-z0-9._:-]{0,127}, on bytes. */
function isTenantBytes(bytes: Uint8Array, start: number, end: number): boolean {
  if (end - start < 1 || end - start > MAX_TENANT_BYTES || tenantBytes[bytes[start]!] !== 1) return false;
  for (let i = start + 1; i < end; i++) if (tenantBytes[bytes[i]!] === 0) return false;
  return true;
}

/** The same rule on a string. */
export function isTenantId(value: string): boolean {
  const bytes = Buffer.from(value, "utf8");
  return isTenantBytes(bytes, 0, bytes.length);
}

/**
 * A cursor over one ChangeEvent on the wire. `read` finds and checks the fields in place and allocates nothing; make
 * one and use it for all events of a batch. Offsets are absolute within the buffer given to `read` and hold until the
 * next `read`; start === end is an empty or absent string.
 *
 * Stricter than a protobuf decoder where leniency would be a trap: a known field of another wire type, a second
 * occurrence of occurred_at, payload or payload_reference (decoders would merge them), groups and malformed UTF-8 are
 * refused. Unknown fields are skipped; of a scalar given twice the last stands.
 */
export class Envelope {
  bytes: Buffer = Buffer.alloc(0);
  start = 0;
  end = 0;
  tenantStart = 0;
  tenantEnd = 0;
  typeStart = 0;
  typeEnd = 0;
  idStart = 0;
  idEnd = 0;
  /** 1 created, 2 updated, 3 deleted. */
  operation = 0;
  /** The halves of the int64 version, unsigned; the value is from 1 (0: see `read`) to 2^63-1. */
  versionLo = 0;
  versionHi = 0;
  /** Seconds since the epoch, exact (a safe integer, negative before 1970); NaN when there is no occurred_at. */
  occurredSeconds = Number.NaN;
  /** 0 to 999,999,999, counted forward from occurredSeconds. */
  occurredNanos = 0;
  /** The type_url of the Any, or of the reference; 0, 0 when there is no payload. */
  typeUrlStart = 0;
  typeUrlEnd = 0;
  /** The Any's value, as packed; -1 when there is no payload. An empty value has start === end >= 0. */
  payloadStart = -1;
  payloadEnd = -1;
  /** The PayloadReference message; -1 when there is none. */
  referenceStart = -1;
  referenceEnd = -1;
  /** 0 none, 1 gzip, 2 zstd. */
  compression = 0;
  /** keyStart, keyEnd, valueStart, valueEnd of each attribute, in wire order; of equal keys the last stands. */
  attributes = new Int32Array(4 * MOST_ATTRIBUTES);
  attributeCount = 0;
  eventIdStart = 0;
  eventIdEnd = 0;

  /**
   * Reads bytes[start, end) as one ChangeEvent. Undefined when it is one and holds to the contract. `leastVersion` is 0
   * for what may come of a bootstrap, to which that version is reserved.
   */
  read(bytes: Buffer, start: number, end: number, leastVersion: 0 | 1 = 1): Code | undefined {
    this.bytes = bytes;
    this.start = start;
    this.end = end;
    this.tenantStart = this.tenantEnd = this.typeStart = this.typeEnd = 0;
    this.idStart = this.idEnd = this.typeUrlStart = this.typeUrlEnd = 0;
    this.eventIdStart = this.eventIdEnd = this.operation = this.compression = 0;
    this.versionLo = this.versionHi = this.attributeCount = this.occurredNanos = 0;
    this.occurredSeconds = Number.NaN;
    this.payloadStart = this.payloadEnd = this.referenceStart = this.referenceEnd = -1;
    if (this.structure(bytes, start, end)) return this.meaning(bytes, leastVersion);
    return this.attributeCount > MOST_ATTRIBUTES ? "TRB-EVENT-ATTRIBUTES" : "TRB-EVENT-MALFORMED";
  }

  private structure(bytes: Buffer, start: number, end: number): boolean {
    let pos = start;
    while (pos < end) {
      let tag = bytes[pos]!;
      if (tag < 0x80 && tag >= 8) pos++;
      else {
        pos = wire.readTag(bytes, pos, end);
        if (pos < 0) return false;
        tag = wire.low;
      }
      const wireType = tag & 7;
      const field = tag >>> 3;
      if (field > 11) {
        pos = wire.skipValue(bytes, pos, end, wireType);
        if (pos < 0) return false;
        continue;
      }
      if (wireType === wire.VARINT) {
        pos = wire.readVarint(bytes, pos, end);
        if (pos < 0) return false;
        // Enums are int32 on the wire: decoders keep the low half.
        if (field === 4) this.operation = wire.low | 0;
        else if (field === 5) {
          this.versionLo = wire.low;
          this.versionHi = wire.high;
        } else if (field === 9) this.compression = wire.low | 0;
        else return false;
        continue;
      }
      if (wireType !== wire.LENGTH_DELIMITED) return false;
      pos = wire.readLength(bytes, pos, end);
      if (pos < 0) return false;
      const from = pos;
      pos += wire.low;
      switch (field) {
        case 1:
          if (!overwritable(bytes, this.tenantStart, this.tenantEnd)) return false;
          this.tenantStart = from;
          this.tenantEnd = pos;
          break;
        case 2:
          if (!overwritable(bytes, this.typeStart, this.typeEnd)) return false;
          this.typeStart = from;
          this.typeEnd = pos;
          break;
        case 3:
          if (!overwritable(bytes, this.idStart, this.idEnd)) return false;
          this.idStart = from;
          this.idEnd = pos;
          break;
        case 6:
          if (!Number.isNaN(this.occurredSeconds) || !this.timestamp(bytes, from, pos)) return false;
          break;
        case 7:
          if (this.payloadStart >= 0 || !this.any(bytes, from, pos)) return false;
          break;
        case 8:
          if (this.referenceStart >= 0 || !this.refer(bytes, from, pos)) return false;
          break;
        case 10:
          if (!this.attribute(bytes, from, pos)) return false;
          break;
        case 11:
          if (!overwritable(bytes, this.eventIdStart, this.eventIdEnd)) return false;
          this.eventIdStart = from;
          this.eventIdEnd = pos;
          break;
        default:
          return false;
      }
    }
    return (
      wire.isUtf8(bytes, this.typeStart, this.typeEnd) &&
      wire.isUtf8(bytes, this.typeUrlStart, this.typeUrlEnd) &&
      wire.isUtf8(bytes, this.eventIdStart, this.eventIdEnd)
    );
  }

  /** What 3.1 asks of the values. The first rule that fails names the code. */
  private meaning(bytes: Buffer, leastVersion: 0 | 1): Code | undefined {
    if (!isTenantBytes(bytes, this.tenantStart, this.tenantEnd)) return "TRB-EVENT-TENANT";
    if (this.typeStart === this.typeEnd) return "TRB-EVENT-ENTITY-TYPE";
    const idBytes = this.idEnd - this.idStart;
    if (idBytes < 1 || idBytes > MAX_ENTITY_ID_BYTES || !wire.isUtf8(bytes, this.idStart, this.idEnd)) {
      return "TRB-EVENT-ENTITY-ID";
    }
    if (this.operation < OPERATION_CREATED || this.operation > OPERATION_DELETED)
      return "TRB-EVENT-OPERATION";
    if (this.versionHi > 0x7fffffff || (this.versionHi === 0 && this.versionLo < leastVersion)) {
      return "TRB-EVENT-VERSION";
    }
    if (!Number.isNaN(this.occurredSeconds) && !wire.isInstant(this.occurredSeconds, this.occurredNanos)) {
      return "TRB-EVENT-TIME";
    }
    const contents = (this.payloadStart >= 0 ? 1 : 0) + (this.referenceStart >= 0 ? 1 : 0);
    if (contents !== (this.operation === OPERATION_DELETED ? 0 : 1)) return "TRB-EVENT-CONTENT";
    if (this.compression < COMPRESSION_NONE || this.compression > COMPRESSION_ZSTD) {
      return "TRB-EVENT-COMPRESSION";
    }
    return this.payloadStart >= 0 && !this.typeUrlFits(bytes) ? "TRB-EVENT-PAYLOAD-TYPE" : undefined;
  }

  /** The type URL is <anything>/<entity_type>. */
  private typeUrlFits(bytes: Buffer): boolean {
    const from = this.typeUrlEnd - (this.typeEnd - this.typeStart);
    if (from - 1 < this.typeUrlStart || bytes[from - 1] !== 0x2f) return false;
    for (let i = from, k = this.typeStart; k < this.typeEnd; i++, k++) {
      if (bytes[i] !== bytes[k]) return false;
    }
    return true;
  }

  private timestamp(bytes: Buffer, start: number, end: number): boolean {
    this.occurredSeconds = 0;
    for (let pos = start; pos < end; ) {
      pos = wire.readTag(bytes, pos, end);
      if (pos < 0) return false;
      const tag = wire.low;
      pos = wire.skipValue(bytes, pos, end, tag & 7);
      if (pos < 0) return false;
      // Where the number is rounded it is far out of years 1..9999 anyway.
      if (tag === 8) this.occurredSeconds = wire.signed64();
      else if (tag === 16) this.occurredNanos = wire.low | 0;
      else if (tag < 24) return false;
    }
    return true;
  }

  private any(bytes: Buffer, start: number, end: number): boolean {
    this.payloadStart = this.payloadEnd = start;
    for (let pos = start; pos < end; ) {
      pos = wire.readTag(bytes, pos, end);
      if (pos < 0) return false;
      const tag = wire.low;
      pos = wire.skipValue(bytes, pos, end, tag & 7);
      if (pos < 0) return false;
      if (tag === 10) {
        if (!overwritable(bytes, this.typeUrlStart, this.typeUrlEnd)) return false;
        this.typeUrlStart = pos - wire.low;
        this.typeUrlEnd = pos;
      } else if (tag === 18) {
        this.payloadStart = pos - wire.low;
        this.payloadEnd = pos;
      } else if (tag < 24) return false;
    }
    return true;
  }

  /** Reads bytes[start, end) as the event's PayloadReference; false when they are no message. */
  refer(bytes: Buffer, start: number, end: number): boolean {
    this.referenceStart = start;
    this.referenceEnd = end;
    for (let pos = start; pos < end; ) {
      pos = wire.readTag(bytes, pos, end);
      if (pos < 0) return false;
      const tag = wire.low;
      pos = wire.skipValue(bytes, pos, end, tag & 7);
      if (pos < 0) return false;
      if (tag !== 18) continue;
      this.typeUrlStart = pos - wire.low;
      this.typeUrlEnd = pos;
    }
    return true;
  }

  private attribute(bytes: Buffer, start: number, end: number): boolean {
    if (this.attributeCount === MOST_ATTRIBUTES) {
      this.attributeCount++;
      return false;
    }
    let keyStart = start;
    let keyEnd = start;
    let valueStart = start;
    let valueEnd = start;
    for (let pos = start; pos < end; ) {
      pos = wire.readTag(bytes, pos, end);
      if (pos < 0) return false;
      const tag = wire.low;
      pos = wire.skipValue(bytes, pos, end, tag & 7);
      if (pos < 0) return false;
      if (tag === 10) {
        if (!overwritable(bytes, keyStart, keyEnd)) return false;
        keyStart = pos - wire.low;
        keyEnd = pos;
      } else if (tag === 18) {
        if (!overwritable(bytes, valueStart, valueEnd)) return false;
        valueStart = pos - wire.low;
        valueEnd = pos;
      } else if (tag < 24) return false;
    }
    if (!wire.isUtf8(bytes, keyStart, keyEnd) || !wire.isUtf8(bytes, valueStart, valueEnd)) return false;
    const at = this.attributeCount * 4;
    this.attributes[at] = keyStart;
    this.attributes[at + 1] = keyEnd;
    this.attributes[at + 2] = valueStart;
    this.attributes[at + 3] = valueEnd;
    this.attributeCount++;
    return true;
  }

  tenantId(): string {
    return this.bytes.toString("latin1", this.tenantStart, this.tenantEnd);
  }

  entityType(): string {
    return this.bytes.toString("utf8", this.typeStart, this.typeEnd);
  }

  entityId(): string {
    return this.bytes.toString("utf8", this.idStart, this.idEnd);
  }

  typeUrl(): string {
    return this.bytes.toString("utf8", this.typeUrlStart, this.typeUrlEnd);
  }

  eventId(): string {
    return this.bytes.toString("utf8", this.eventIdStart, this.eventIdEnd);
  }

  version(): bigint {
    return (BigInt(this.versionHi) << 32n) | BigInt(this.versionLo);
  }

  /**
   * Microseconds since the epoch, rounded down; NaN when there is no occurred_at. Exact within 285 years of 1970,
   * where a double holds it; use occurredSeconds and occurredNanos beyond that.
   */
  get occurredMicros(): number {
    return this.occurredSeconds * 1e6 + Math.floor(this.occurredNanos / 1000);
  }

  /** A view of the payload as packed; undefined when there is none. */
  payload(): Buffer | undefined {
    return this.payloadStart < 0 ? undefined : this.bytes.subarray(this.payloadStart, this.payloadEnd);
  }

  /** Attributes by key. */
  attributeMap(): Map<string, string> {
    const map = new Map<string, string>();
    for (let at = 0; at < this.attributeCount * 4; at += 4) {
      const key = this.bytes.toString("utf8", this.attributes[at], this.attributes[at + 1]);
      map.set(key, this.bytes.toString("utf8", this.attributes[at + 2], this.attributes[at + 3]));
    }
    return map;
  }
}

/** A string that a later occurrence replaces must be one all the same: other decoders look at it. */
const overwritable = (bytes: Uint8Array, start: number, end: number): boolean =>
  start === end || wire.isUtf8(bytes, start, end);

/** How many fields are walked between two signs of life. */
const FIELDS = 8192;

/** Where the events of a PublishRequest lie, found without looking into them: event i is bytes[starts[i], ends[i]). */
export class Frames {
  /** Plain arrays: typed ones cost more to make than a request's events to find. */
  readonly starts: number[] = [];
  readonly ends: number[] = [];
  private pos = 0;

  constructor(private readonly body: Uint8Array) {}

  /** Walks on, until there are more than `most` events, too. True at the end; undefined when the body is damaged. */
  walk(most: number): boolean | undefined {
    const { body } = this;
    const end = body.length;
    let pos = this.pos;
    for (let fields = 0; pos < end && fields < FIELDS && this.count <= most; fields++) {
      pos = wire.readTag(body, pos, end);
      if (pos < 0) return undefined;
      const tag = wire.low;
      pos = wire.skipValue(body, pos, end, tag & 7);
      if (pos < 0) return undefined;
      if (tag === 10) {
        this.starts.push(pos - wire.low);
        this.ends.push(pos);
      } else if (tag < 16) return undefined;
    }
    this.pos = pos;
    return pos === end || this.count > most;
  }

  get count(): number {
    return this.starts.length;
  }
}

/** The same at once. Undefined when the body is not readable as a PublishRequest. */
export function frames(body: Uint8Array): Frames | undefined {
  const found = new Frames(body);
  for (;;) {
    const end = found.walk(Number.POSITIVE_INFINITY);
    if (end !== false) return end && found;
  }
}
