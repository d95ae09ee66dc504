import { initProducerIdV4 } from "@platformatic/kafka";
import { expect, test, vi } from "vitest";
import { eventSlices } from "../../../test/support/event-slices.js";
import type { ProduceOrder } from "./produce-api.js";
import { Topic } from "./topic.js";
import { KafkaWriter, type KafkaWriterOptions } from "./writer.js";

test("a topic that is made anew with fewer partitions takes all events; one that a broker knows less of stays as it was", async () => {
  const state = { id: "1", leaders: [0, 0, 0, 0] };
  const call = async (_node: unknown, _lane: unknown, api: unknown, [order]: [ProduceOrder]) => {
    if (api === initProducerIdV4.api) return { errorCode: 0, producerId: 1n, producerEpoch: 0 };
    const partitionResponses = order.batches.map(({ partition }) => {
      return { index: partition, errorCode: 0, baseOffset: 0n };
    });
    return { responses: [{ partitionResponses }], throttleTimeMs: 0 };
  };
  const topic = {
    name: "t",
    state,
    maxMessageBytes: 1_000_000,
    brokers: { call, close: async () => undefined },
    refresh: async () => state,
    ask: async () => undefined,
  };
  vi.spyOn(Topic, "open").mockResolvedValue(topic as unknown as Topic);
  const writer = await KafkaWriter.open({
    brokers: { brokers: ["localhost:1"], clientId: "c" },
    topic: {} as KafkaWriterOptions["topic"],
    compression: "none",
    maxInFlightBytes: 1_000_000,
    describe: () => undefined,
    limits: { patienceMs: 200, triesMs: 200 },
  });
  const append = async () => {
    const events = [0, 1, 2, 3].map((partition) => ({ partition, bytes: Buffer.from("event") }));
    const { names, partitions } = await writer.append(eventSlices(events));
    return [...partitions].map((partition) => names[partition]);
  };
  expect(await append()).toEqual(["0", "1", "2", "3"]);
  state.leaders = [0, 0];
  state.id = "2";
  expect(await append()).toEqual(["0", "0", "1", "1"]);
  state.leaders = [0];
  expect(await append()).toEqual(["0", "0", "1", "1"]);
  await writer.close();
});
