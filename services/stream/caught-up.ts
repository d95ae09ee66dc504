import type { ChangeStreamReader } from "./change-stream.js";

/** Whether the consumer's low-water record has reached the head: no durable event waits for it. */
export async function caughtUp(reader: ChangeStreamReader, consumer: string): Promise<boolean> {
  const done = await reader.lowWater(consumer);
  return [...(await reader.head())].every(([partition, position]) => done.get(partition) === position);
}
