import type { EventSlices, StreamBatch } from "../../services/stream/change-stream.js";

/** Lays events into one buffer as a request body would, with `gap(i)` foreign bytes before event i. */
export function eventSlices(
  events: readonly { readonly partition: number; readonly bytes: Uint8Array }[],
  gap: (i: number) => number = () => 3,
): EventSlices {
  const count = events.length;
  const starts = new Uint32Array(count);
  const ends = new Uint32Array(count);
  const partitions = new Uint16Array(count);
  const total = events.reduce((sum, event, i) => sum + gap(i) + event.bytes.length, 0);
  const bytes = Buffer.alloc(total, 0xee);
  let at = 0;
  events.forEach((event, i) => {
    at += gap(i);
    bytes.set(event.bytes, at);
    starts[i] = at;
    at += event.bytes.length;
    ends[i] = at;
    partitions[i] = event.partition;
  });
  return { bytes, count, starts, ends, partitions };
}

export interface ReadEvent {
  readonly partition: number;
  readonly position: string;
  readonly receivedAt: number;
  readonly text: string;
}

/** The events of a batch as objects, for comparing. */
export function eventsOf(batch: StreamBatch): ReadEvent[] {
  return Array.from({ length: batch.count }, (_, i) => ({
    partition: batch.partitions[i]!,
    position: batch.positions[i]!,
    receivedAt: batch.receivedAt[i]!,
    text: batch.bytes.toString("latin1", batch.starts[i]!, batch.ends[i]!),
  }));
}
