import { Envelope } from "../contracts/envelope.js";
import type { WireWriter } from "../contracts/wire-writer.js";

/** Bytes of an event beside its texts: tags, lengths and numbers. */
export const FRAME_BYTES = 96;

/** What comes before an event's content. */
export interface EventHead {
  /** Bytes of tenant and entity id, one after the other: [0, tenantEnd) and [tenantEnd, idEnd). */
  readonly text: Uint8Array;
  readonly tenantEnd: number;
  readonly idEnd: number;
  readonly operation: number;
  readonly versionLo: number;
  readonly versionHi: number;
  /** NaN for an event that does not say when. */
  readonly occurredSeconds: number;
  readonly occurredNanos: number;
}

/**
 * Writes events of one type as a producer would have sent them, and tells where their fields lie: no event becomes an
 * object, and none is read again. The caller keeps the order: head, payload or reference, compression.
 */
export class EventWriter {
  readonly type: Buffer;
  /** Of the event that was begun last. */
  readonly envelope = new Envelope();

  constructor(entityType: string) {
    this.type = Buffer.from(entityType);
  }

  begin(out: WireWriter, head: EventHead): void {
    const { envelope, type } = this;
    const { text, tenantEnd, idEnd } = head;
    envelope.start = out.length;
    envelope.tenantEnd = out.bytes(1, text, 0, tenantEnd).length;
    envelope.tenantStart = envelope.tenantEnd - tenantEnd;
    envelope.typeEnd = out.bytes(2, type).length;
    envelope.typeStart = envelope.typeEnd - type.length;
    envelope.idEnd = out.bytes(3, text, tenantEnd, idEnd).length;
    envelope.idStart = envelope.idEnd - (idEnd - tenantEnd);
    envelope.operation = head.operation;
    envelope.versionLo = head.versionLo;
    envelope.versionHi = head.versionHi;
    out
      .number(4, envelope.operation)
      .varint(5 * 8)
      .varint64(envelope.versionLo, envelope.versionHi);
    envelope.occurredSeconds = head.occurredSeconds;
    envelope.occurredNanos = head.occurredNanos;
    if (!Number.isNaN(head.occurredSeconds)) out.time(6, head.occurredSeconds, head.occurredNanos);
    envelope.typeUrlStart = envelope.typeUrlEnd = 0;
    envelope.payloadStart = envelope.payloadEnd = -1;
    envelope.referenceStart = envelope.referenceEnd = -1;
    envelope.compression = 0;
  }

  /** The Any of bytes [urlStart, urlEnd) of `urls` and [start, end) of `bytes`. */
  payload(
    out: WireWriter,
    urls: Uint8Array,
    urlStart: number,
    urlEnd: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    const { envelope } = this;
    const url = urlEnd - urlStart;
    const value = end - start;
    out.varint(7 * 8 + 2).varint(2 + lengthBytes(url) + url + lengthBytes(value) + value);
    envelope.typeUrlEnd = out.bytes(1, urls, urlStart, urlEnd).length;
    envelope.typeUrlStart = envelope.typeUrlEnd - url;
    envelope.payloadEnd = out.bytes(2, bytes, start, end).length;
    envelope.payloadStart = envelope.payloadEnd - value;
  }

  /** A PayloadReference on the wire. */
  reference(out: WireWriter, reference: Buffer): void {
    const end = out.bytes(8, reference).length;
    this.envelope.refer(out.buffer, end - reference.length, end);
  }

  compression(out: WireWriter, compression: number): void {
    this.envelope.compression = compression;
    if (compression !== 0) out.number(9, compression);
  }
}

/** Bytes of a length as a varint. */
function lengthBytes(length: number): number {
  let bytes = 1;
  for (let rest = length; rest >= 0x80; rest >>>= 7) bytes++;
  return bytes;
}
