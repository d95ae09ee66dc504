import { slotsOfRange } from "../../services/base/slots.js";
import type { Appended, OutgoingEvents, StreamBatch } from "../../services/stream/change-stream.js";

/**
 * Lays events into one buffer as a request body would, with `gap(i)` foreign bytes before event i. Their slots are of
 * range `partition` of `ranges` equal ones.
 */
export function eventSlices(
  events: readonly { readonly partition: number; readonly bytes: Uint8Array }[],
  gap: (i: number) => number = () => 3,
  ranges = 4,
): OutgoingEvents {
  const count = events.length;
  const starts = new Uint32Array(count);
  const ends = new Uint32Array(count);
  const slots = new Uint32Array(count);
  const total = events.reduce((sum, event, i) => sum + gap(i) + event.bytes.length, 0);
  const bytes = Buffer.alloc(total, 0xee);
  let at = 0;
  events.forEach((event, i) => {
    at += gap(i);
    bytes.set(event.bytes, at);
    starts[i] = at;
    at += event.bytes.length;
    ends[i] = at;
    slots[i] = slotsOfRange(event.partition, ranges).start;
  });
  return { bytes, count, starts, ends, slots };
}

/** Where the events of an append stand, all of which must have been taken. */
export function placesOf({
  names,
  partitions,
  positions,
}: Appended): { partition: string; position: string }[] {
  return positions.map((position, i) => {
    if (position === undefined) throw new Error(`event ${i} was refused`);
    return { partition: names[partitions[i]!]!, position };
  });
}

export const positionsIn = (appended: Appended): string[] =>
  placesOf(appended).map(({ position }) => position);

export interface ReadEvent {
  /** Its name. */
  readonly partition: string;
  readonly position: string;
  readonly receivedAt: number;
  readonly text: string;
}

/** The events of a batch as objects, for comparing. */
export function eventsOf(batch: StreamBatch): ReadEvent[] {
  return Array.from({ length: batch.count }, (_, i) => ({
    partition: batch.names[batch.partitions[i]!]!,
    position: batch.positions[i]!,
    receivedAt: batch.receivedAt[i]!,
    text: batch.bytes.toString("latin1", batch.starts[i]!, batch.ends[i]!),
  }));
}
