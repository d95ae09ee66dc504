import { Envelope } from "./envelope.js";

const TRACEPARENT = Buffer.from("traceparent");

/**
 * What a stream tells consumers that know no envelopes: offsets of an event's entity, and of its trace, within the bytes
 * given. One object serves all calls, so an answer holds until the next. Undefined for what is no ChangeEvent.
 */
export class EventFactsReader {
  tenantStart = 0;
  tenantEnd = 0;
  typeStart = 0;
  typeEnd = 0;
  idStart = 0;
  idEnd = 0;
  /** -1 when the event has none. */
  traceparentStart = -1;
  traceparentEnd = -1;
  private readonly envelope = new Envelope();

  read(bytes: Buffer, start: number, end: number): this | undefined {
    const { envelope } = this;
    if (envelope.read(bytes, start, end) !== undefined) return undefined;
    this.tenantStart = envelope.tenantStart;
    this.tenantEnd = envelope.tenantEnd;
    this.typeStart = envelope.typeStart;
    this.typeEnd = envelope.typeEnd;
    this.idStart = envelope.idStart;
    this.idEnd = envelope.idEnd;
    this.traceparentStart = this.traceparentEnd = -1;
    for (let i = 0; i < envelope.attributeCount; i++) {
      const [keyStart, keyEnd, valueStart, valueEnd] = envelope.attributes.subarray(4 * i, 4 * i + 4);
      // The length first: nearly all end there.
      if (keyEnd! - keyStart! !== TRACEPARENT.length) continue;
      if (TRACEPARENT.compare(bytes, keyStart, keyEnd) !== 0) continue;
      this.traceparentStart = valueStart!;
      this.traceparentEnd = valueEnd!;
    }
    return this;
  }
}
