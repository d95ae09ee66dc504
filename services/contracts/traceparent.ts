import { isSampled } from "../base/traces.js";
import type { Envelope } from "./envelope.js";

const KEY = Buffer.from("traceparent");
const BYTES = 55;

/** Where in `attributes` the offsets of its value are, sampled or not; -1 when there is none. */
export function traceparentIn({ bytes, attributes, attributeCount }: Envelope): number {
  for (let at = attributeCount * 4 - 4; at >= 0; at -= 4) {
    const start = attributes[at]!;
    const end = attributes[at + 1]!;
    // The length first: nearly all end there.
    if (end - start === KEY.length && KEY.compare(bytes, start, end) === 0) return at + 2;
  }
  return -1;
}

/** The event's trace, where its producer has sampled it; `envelope` has read its attributes. */
export function traceparentOf(envelope: Envelope): string | undefined {
  const at = traceparentIn(envelope);
  if (at < 0) return undefined;
  const { bytes, attributes } = envelope;
  const [start, end] = [attributes[at]!, attributes[at + 1]!];
  if (end - start !== BYTES) return undefined;
  const value = bytes.toString("latin1", start, end);
  return isSampled(value) ? value : undefined;
}

/** Whether an event can have one: a look that costs next to nothing. */
export const mayHaveTraceparent = (event: Buffer): boolean => event.includes(KEY);
