import { Envelope } from "./envelope.js";
import { traceparentIn } from "./traceparent.js";

/**
 * What a stream tells consumers that know no envelopes: offsets of an event's entity, and of its trace, within the bytes
 * given. One object serves all calls, so an answer holds until the next.
 */
export class EventFactsReader extends Envelope {
  /** -1 when the event has none. */
  traceparentStart = -1;
  traceparentEnd = -1;

  /** Undefined for what is no ChangeEvent. */
  facts(bytes: Buffer, start: number, end: number): this | undefined {
    if (this.read(bytes, start, end) !== undefined) return undefined;
    const value = traceparentIn(this);
    this.traceparentStart = value < 0 ? -1 : this.attributes[value]!;
    this.traceparentEnd = value < 0 ? -1 : this.attributes[value + 1]!;
    return this;
  }
}
