import { isSampled } from "../base/traces.js";
import type { Envelope } from "./envelope.js";

const KEY = Buffer.from("traceparent");
const BYTES = 55;

/** The event's trace, where its producer has sampled it; `envelope` has read its attributes. */
export function traceparentOf({ bytes, attributes, attributeCount }: Envelope): string | undefined {
  for (let at = attributeCount * 4 - 4; at >= 0; at -= 4) {
    const start = attributes[at]!;
    const end = attributes[at + 1]!;
    if (end - start !== KEY.length || KEY.compare(bytes, start, end) !== 0) continue;
    if (attributes[at + 3]! - attributes[at + 2]! !== BYTES) return undefined;
    const value = bytes.toString("latin1", attributes[at + 2]!, attributes[at + 3]!);
    return isSampled(value) ? value : undefined;
  }
  return undefined;
}

/** Whether an event can have one: a look that costs next to nothing. */
export const mayHaveTraceparent = (event: Buffer): boolean => event.includes(KEY);
