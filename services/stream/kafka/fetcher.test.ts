import { setImmediate } from "node:timers/promises";
import { afterEach, expect, test, vi } from "vitest";
import { at, batchOf, fetched, textsOf } from "../../../test/support/record-batches.js";
import type { FetchAnswer, FetchOrder } from "./fetch-api.js";
import { Fetcher } from "./fetcher.js";
import type { Topic } from "./topic.js";

/** Until all that is under way without a timer is done. */
const turns = async () => {
  for (let i = 0; i < 5; i++) await setImmediate();
};

/** A partition of one log, whose brokers answer when there is something to tell and nothing holds them up. */
class OnePartition {
  readonly log: string[] = [];
  readonly state = { id: "1", leaders: [0] };
  readonly brokers = {
    call: async (leader: number, _lane: unknown, _api: unknown, [order]: [FetchOrder]) => {
      if (leader === this.gone) throw new Error("connection refused");
      const from = order.from.get(0)!;
      await this.until(() => this.log.length > from);
      const partition = fetched(at(batchOf(this.log.slice(from)), from), { index: 0 });
      await this.until(() => leader !== this.frozen);
      return { throttleMs: 0, errorCode: 0, partitions: [partition] } satisfies FetchAnswer;
    },
  };
  /** Broker whose answers are on their way for as long as it is this one. */
  frozen: number | undefined;
  /** Broker that nobody reaches. */
  gone: number | undefined;
  readonly fetcher = new Fetcher(this as unknown as Topic, { bytes: 1024 * 1024, waitMs: 500 });
  private over = false;

  private async until(holds: () => boolean): Promise<void> {
    while (!holds()) {
      if (this.over) throw new Error("over");
      await setImmediate();
    }
  }

  async refresh(): Promise<void> {}

  /** The events of the oldest answer that waits; none when none does. */
  take(): string[] {
    const answer = this.fetcher.take();
    return answer === undefined ? [] : textsOf(answer.window);
  }

  close(): void {
    this.over = true;
    this.fetcher.close();
  }
}

let partition: OnePartition;
afterEach(() => partition.close());
afterEach(() => {
  vi.restoreAllMocks();
});

test("what comes while nobody reads is read in few pieces, however many it came in", async () => {
  partition = new OnePartition();
  partition.fetcher.add(0, 0);
  for (let i = 0; i < 100; i++) {
    partition.log.push(`event ${i}`);
    await turns();
  }
  const pieces: string[][] = [];
  while (pieces.flat().length < partition.log.length) {
    pieces.push(partition.take());
    await turns();
  }
  expect(pieces.flat()).toEqual(partition.log);
  expect(pieces.length).toBeLessThan(5);
});

test("what a leader answers once its successor has told the same comes once, and reading goes on after it", async () => {
  partition = new OnePartition();
  partition.frozen = 0;
  partition.log.push("event 0", "event 1");
  partition.fetcher.add(0, 0);
  await turns();
  partition.state.leaders = [1];
  expect(partition.take()).toEqual([]);
  partition.log.push("event 2");
  await turns();
  expect(partition.take()).toEqual(["event 0", "event 1", "event 2"]);
  partition.frozen = undefined;
  await turns();
  expect(partition.take()).toEqual([]);
  partition.log.push("event 3");
  await turns();
  expect(partition.take()).toEqual(["event 3"]);
  await turns();
  expect(partition.take()).toEqual([]);
});

/** A clock that can be put ahead. */
function clock() {
  const ahead = { ms: 0 };
  const now = performance.now.bind(performance);
  vi.spyOn(performance, "now").mockImplementation(() => now() + ahead.ms);
  return ahead;
}

test("that a reader took its time is no silence of the brokers", async () => {
  const ahead = clock();
  partition = new OnePartition();
  partition.state.leaders = [0, 1];
  partition.gone = 1;
  partition.log.push("event 0");
  partition.fetcher.add(0, 0);
  await turns();
  partition.fetcher.add(1, 0);
  await turns();
  // The other partition went to the broker whose answer waits, and which is therefore not asked.
  partition.state.leaders = [0, 0];
  ahead.ms = 60_000;
  expect(partition.take()).toEqual(["event 0"]);
  expect(partition.take()).toEqual([]);
});

test("a reader is told of brokers that are silent for long", async () => {
  const ahead = clock();
  partition = new OnePartition();
  partition.gone = 0;
  partition.fetcher.add(0, 0);
  await turns();
  expect(partition.take()).toEqual([]);
  ahead.ms = 60_000;
  expect(() => partition.take()).toThrow("the Kafka brokers do not answer");
});
