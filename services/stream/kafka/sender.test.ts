import { initProducerIdV4 } from "@platformatic/kafka";
import { expect, test } from "vitest";
import type { Appended } from "../change-stream.js";
import { KAFKA } from "./failures.js";
import { PartitionLane } from "./partition-lane.js";
import { PendingAppend } from "./pending-append.js";
import type { ProduceOrder } from "./produce-api.js";
import { Sender } from "./sender.js";
import type { Topic } from "./topic.js";

type Answer = { readonly errorCode: number; readonly baseOffset: bigint };

/** A topic of two partitions with one leader, which answers each batch in turn as it is told. */
function sender(answer: (partition: number, tries: number) => Answer, patienceMs: number) {
  const batches: { readonly partition: number; readonly producer: bigint }[] = [];
  let identities = 0n;
  const call = async (_node: unknown, _lane: unknown, api: unknown, [order]: [ProduceOrder]) => {
    if (api === initProducerIdV4.api) return { errorCode: 0, producerId: ++identities, producerEpoch: 0 };
    const partitionResponses = order.batches.map(({ partition, bytes }) => {
      batches.push({ partition, producer: bytes.readBigInt64BE(43) });
      const tries = batches.filter((batch) => batch.partition === partition).length;
      return { index: partition, ...answer(partition, tries) };
    });
    return { responses: [{ partitionResponses }], throttleTimeMs: 0 };
  };
  const topic = { name: "t", state: { leaders: [0, 0] }, brokers: { call }, refresh: async () => undefined };
  const lanes = [0, 1].map((partition) => new PartitionLane(partition, () => 1_000_000, "none"));
  const limits = { patienceMs, triesMs: patienceMs };
  const sending = new Sender(topic as unknown as Topic, lanes, limits, () => undefined);
  const append = () =>
    new Promise<Appended>((resolve, reject) => {
      const pending = new PendingAppend(["0", "1"], Uint16Array.of(0, 1), 10, resolve, reject);
      for (const lane of lanes)
        lane.add(pending, lane.partition, [Buffer.from("event"), 0, 5], undefined, Date.now());
      sending.wake();
    });
  return { append, batches };
}

const STORED: Answer = { errorCode: KAFKA.NONE, baseOffset: 7n };

for (const name of ["NOT_LEADER_OR_FOLLOWER", "UNKNOWN_TOPIC_OR_PARTITION", "KAFKA_STORAGE_ERROR"] as const) {
  test(`a batch that a leader has put into its log before it answers ${name} is not said to be refused`, async () => {
    const { append } = sender((partition) => {
      return partition === 0 ? STORED : { errorCode: KAFKA[name], baseOffset: 7n };
    }, -1);
    await expect(append()).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
  });
}

test("a batch of a leader that was replaced is sent again as it was, and never under another identity", async () => {
  const codes = [KAFKA.NOT_LEADER_OR_FOLLOWER, KAFKA.OUT_OF_ORDER_SEQUENCE_NUMBER];
  const { append, batches } = sender((partition, tries) => {
    const errorCode = partition === 0 ? undefined : codes[tries - 1];
    return errorCode === undefined ? STORED : { errorCode, baseOffset: -1n };
  }, 5_000);
  await expect(append()).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
  const producers = batches.flatMap(({ partition, producer }) => (partition === 1 ? [producer] : []));
  expect(producers).toHaveLength(2);
  expect(new Set(producers).size).toBe(1);
});
