import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { TributaryError } from "../../services/base/errors.js";
import { Envelope } from "../../services/contracts/envelope.js";
import { slotOf } from "../../services/contracts/slot.js";
import { parkedTables } from "../../services/ingest/parked-log.js";
import { Pipeline } from "../../services/ingest/pipeline.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { overriding } from "./faulty-store.js";
import { encodeTestEvent, expectedThings, type Lake, type Random, type TestEvent, THING } from "./lake.js";
import type { MemoryGroup } from "./memory-group.js";
import { until } from "./pipeline-run.js";

const never = new Promise<never>(() => undefined);
const RAW_LOG = `raw/${THING}/_delta_log/`;

/** One worker's way to the lake: it may freeze, die, and meet a raw table that takes nothing. */
class Gate {
  dead = false;
  down = false;
  private frozen: Promise<void> | undefined;
  private thaw: () => void = () => undefined;

  freeze(): void {
    if (this.frozen !== undefined) return;
    this.frozen = new Promise((resolve) => {
      this.thaw = resolve;
    });
  }

  wake(): void {
    this.frozen = undefined;
    this.thaw();
  }

  private async pass<T>(run: () => Promise<T>): Promise<T> {
    await this.frozen;
    if (this.dead) return never;
    const result = await run();
    // The answer to what has happened is lost.
    if (this.dead) return never;
    await this.frozen;
    return result;
  }

  around(inner: ObjectStore): ObjectStore {
    return overriding(inner, {
      get: (key) => this.pass(() => inner.get(key)),
      put: (key, bytes) => this.pass(() => inner.put(key, bytes)),
      adopt: (files) => this.pass(() => inner.adopt(files)),
      delete: (keys) => this.pass(() => inner.delete(keys)),
      putIfAbsent: (key, bytes) =>
        this.pass(async () => {
          if (this.down && key.startsWith(RAW_LOG))
            throw new TributaryError("TRB-STORE-FAILED", "a test's fault");
          return inner.putIfAbsent(key, bytes);
        }),
    });
  }
}

/** A process of ingest, as it were, beside others over one lake and one stream. */
class Worker {
  private constructor(
    readonly gate: Gate,
    readonly lake: Lake,
    readonly pipeline: Pipeline,
    readonly done: Promise<void>,
  ) {}

  static async start(first: Lake, group: MemoryGroup): Promise<Worker> {
    const gate = new Gate();
    const lake = await first.twin({ store: (inner) => gate.around(inner) });
    const pipeline = new Pipeline(
      {
        ...lake.context,
        crew: { tends: () => false, isFree: () => false, runs: () => false, lookMs: undefined },
      },
      group.reader(),
    );
    const worker = new Worker(gate, lake, pipeline, pipeline.run());
    worker.done.catch(() => undefined);
    return worker;
  }

  async stop(): Promise<void> {
    this.pipeline.stop();
    await this.done;
    this.lake.context.duck.close();
  }
}

/** What may happen to a group of workers in mid-stream. */
const TROUBLES = ["rebalance", "snatch", "join", "leave", "kill", "freeze", "quarantine"] as const;

/**
 * Workers come, go, die, freeze and lose their raw table while events come; in the end each event is in raw once, and
 * the refined table is what the events say. `note` names the round in failures.
 */
export async function runWorkers(options: {
  readonly lake: Lake;
  readonly group: MemoryGroup;
  readonly random: Random;
  readonly events: readonly TestEvent[];
  readonly troubles: number;
  readonly most: number;
  readonly note: string;
}): Promise<void> {
  const { lake, group, random, events, most, note } = options;
  const workers = new Set<Worker>();
  const add = async () => void workers.add(await Worker.start(lake, group));
  for (let i = 0; i < 1 + random.below(most); i++) await add();
  const healing: Promise<void>[] = [];
  const positions: string[] = [];
  const trouble = async (): Promise<void> => {
    const kind = random.pick(TROUBLES);
    const worker = random.pick([...workers]);
    if (kind === "rebalance") return void group.rebalance(true);
    if (kind === "snatch") return void group.rebalance(false);
    if (kind === "join") return workers.size < most ? add() : undefined;
    if (kind === "quarantine") {
      worker.gate.down = true;
      healing.push(
        sleep(random.below(1_500)).then(() => {
          worker.gate.down = false;
          worker.pipeline.hurry();
        }),
      );
      return;
    }
    if (kind === "freeze") {
      worker.gate.freeze();
      // The others go on with what it had; it wakes up later and knows of nothing.
      healing.push(
        sleep(random.below(300))
          .then(() => group.rebalance(false))
          .then(() => sleep(random.below(1_500)))
          .then(() => worker.gate.wake()),
      );
      return;
    }
    if (workers.size < 2) return;
    workers.delete(worker);
    if (kind === "leave") {
      healing.push(worker.stop());
      return;
    }
    worker.gate.dead = true;
    worker.gate.wake();
    worker.pipeline.stop();
    for (const member of group.members) if (member.isOf(worker.pipeline)) void group.leave(member, false);
  };
  const envelope = new Envelope();
  for (let at = 0; at < events.length; ) {
    const end = Math.min(events.length, at + 1 + random.below(8));
    for (; at < end; at++) {
      const bytes = encodeTestEvent(events[at]!);
      envelope.read(bytes, 0, bytes.length);
      positions.push(group.append(slotOf(envelope), bytes));
    }
    await sleep(random.below(12));
    if (random.chance((options.troubles * 4) / events.length)) await trouble();
  }
  await Promise.all(healing);
  for (const worker of workers) {
    worker.gate.down = false;
    worker.pipeline.hurry();
  }
  await until(`${note}: the low-water record to reach the head`, () => group.caughtUp, 60_000);
  await until(
    `${note}: nothing to be parked`,
    async () => {
      if ((await parkedTables(lake.context.store)).length === 0) return true;
      // What a frozen worker has parked for nothing is found by whoever is given the partition next.
      await sleep(300);
      await group.rebalance(true);
      return false;
    },
    60_000,
  );
  await Promise.all([...workers].map((worker) => worker.stop()));
  expect(await lake.rawPositions(), `${note}: raw`).toEqual([...positions].sort());
  expect(await lake.rows(), `${note}: refined`).toEqual(expectedThings(events));
}
