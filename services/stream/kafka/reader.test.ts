import { beforeEach, expect, test, vi } from "vitest";
import type { PartitionHolder } from "../change-stream.js";
import type { KafkaConsumer } from "./consumer.js";
import { commitOffsets, committedOffsets, listOffsets } from "./offsets.js";
import { KafkaReader } from "./reader.js";
import { Topic } from "./topic.js";

vi.mock("./brokers.js", () => ({
  Brokers: class {
    async close(): Promise<void> {}
  },
}));
vi.mock("./group-member.js", () => ({
  GroupMember: class {
    constructor(_topic: unknown, _group: string, _times: unknown, consumer: KafkaConsumer) {
      owner = consumer;
    }
    async start(): Promise<void> {}
    async leave(): Promise<void> {}
    async ended(): Promise<void> {}
  },
}));
vi.mock("./offsets.js", async (original) => ({
  ...(await original<object>()),
  committedOffsets: vi.fn(async () => new Map()),
  commitOffsets: vi.fn(async () => undefined),
  listOffsets: vi.fn(async (_topic: unknown, which: string) => new Map([[0, which === "latest" ? 9 : 0]])),
}));

let owner: KafkaConsumer;
/** Brokers that never have anything to tell, of a topic of so many partitions as we know. */
let partitions: number;
let reader: KafkaReader;
beforeEach(async () => {
  vi.clearAllMocks();
  partitions = 1;
  const topic = {
    name: "t",
    streamName: "kafka-1",
    get state() {
      return { id: "1", leaders: new Array<number>(partitions).fill(-1) };
    },
    brokers: { close: async () => undefined },
    refresh: async () => undefined,
    ask: (question: () => unknown) => question(),
    over: () => topic,
  };
  vi.spyOn(Topic, "open").mockResolvedValue(topic as unknown as Topic);
  reader = await KafkaReader.open({} as Parameters<typeof KafkaReader.open>[0]);
});

test("a look at what waits that is cut short by closing does not look like all there is", async () => {
  const looking = reader.waiting("ingest");
  const first = looking.next();
  first.catch(() => undefined);
  await vi.waitFor(() => expect(listOffsets).toHaveBeenCalledTimes(2));
  await reader.close();
  await expect(first).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
});

test("a partition that we have not been told of yet is not begun anew, nor read under no name", async () => {
  const assigned = vi.fn();
  const holder: PartitionHolder = { assigned, revoked: async () => undefined };
  await reader.consume("ingest", holder);
  const membership = { group: "t.ingest", coordinator: 0, memberId: "m", generation: 1 };
  vi.mocked(committedOffsets).mockImplementation(async () => new Map(partitions > 1 ? [[1, 500]] : []));
  // Of those whom the group's leader knows, others have seen the topic grow.
  await expect(owner.gained([1], membership)).rejects.toMatchObject({ code: 3 });
  expect(commitOffsets).not.toHaveBeenCalled();
  expect(assigned).not.toHaveBeenCalled();
  partitions = 2;
  await owner.gained([1], membership);
  expect(commitOffsets).not.toHaveBeenCalled();
  expect(assigned).toHaveBeenCalledWith([expect.objectContaining({ name: "1" })]);
  await reader.close();
});
