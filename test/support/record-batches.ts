import { BatchBuilder, sign } from "../../services/stream/kafka/record-batch.js";
import type { FetchedPartition, Window } from "../../services/stream/kafka/window.js";

/** A batch as a producer sends it: each text an event. */
export function batchOf(
  texts: readonly string[],
  options: { attributes?: number; producer?: bigint } = {},
): Buffer {
  const builder = new BatchBuilder(1024 * 1024, 16);
  for (const text of texts) builder.add(Buffer.from(text), 0, text.length, undefined, 1_000);
  const batch = builder.finish();
  batch.writeInt16BE(options.attributes ?? 0, 21);
  sign(batch, { id: options.producer ?? 7n, epoch: 0 }, 0);
  return batch;
}

/** As the broker stores it. */
export function at(batch: Buffer, offset: number): Buffer {
  const stored = Buffer.from(batch);
  stored.writeBigInt64BE(BigInt(offset), 0);
  return stored;
}

/** What a broker answers for one partition that is well. */
export const fetched = (records: Buffer, over: Partial<FetchedPartition> = {}): FetchedPartition => ({
  index: 3,
  errorCode: 0,
  highWatermark: 0,
  logStart: 0,
  aborted: [],
  records,
  ...over,
});

export const textsOf = ({ bytes, count, starts, ends }: Window): string[] =>
  Array.from({ length: count }, (_, i) => bytes.toString("latin1", starts[i], ends[i]));
