import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { eventSlices, eventsOf, placesOf, type ReadEvent } from "../../../test/support/event-slices.js";
import { SimulatedFiles } from "../../../test/support/simulated-files.js";
import type { StreamConsumer } from "../change-stream.js";
import { EmbeddedLogReader } from "./reader.js";
import { EmbeddedLogWriter } from "./writer.js";

const FOLDER = "/simulated/stream";
const PARTITIONS = 2;
const READ = { maxEvents: 7, maxBytes: 2_000, waitMs: 0 };

type Step =
  | { readonly do: "append"; readonly sizes: readonly number[] }
  | { readonly do: "settle" | "read" | "commit" | "trim" | "reopen" };

/** What the world outside has been told; no crash may contradict it. */
class Ledger {
  readonly appended = new Set<string>();
  /** "partition/position" → text, of acknowledged and of delivered events. */
  readonly promised = new Map<string, string>();
  /** Low-water positions whose commit has resolved. */
  readonly committed = new Map<string, string>();
  private count = 0;

  newText(size: number): string {
    const text = `#${this.count++}#`.padEnd(size, "-");
    this.appended.add(text);
    return text;
  }

  promise(partition: string, position: string, text: string): void {
    const key = `${partition}/${position}`;
    const before = this.promised.get(key);
    if (before !== undefined && before !== text) throw new Error(`position ${key} was given twice`);
    this.promised.set(key, text);
  }
}

const openWriter = (files: SimulatedFiles) =>
  EmbeddedLogWriter.open({
    folder: FOLDER,
    partitions: PARTITIONS,
    segmentBytes: 1_200,
    groupBytes: 800,
    files,
  });

/** Runs the steps; ends early, without an error, when `files` crash. */
async function session(files: SimulatedFiles, steps: readonly Step[], ledger: Ledger): Promise<void> {
  // Operations take their time, so that readers meet frames that are written and not yet synced.
  const random = seeded(steps.length);
  files.onOperation = async (operation) => {
    if (operation !== "dataSync" && random() < 0.7) return;
    for (let turns = 3 * random(); turns > 0; turns--) await new Promise(setImmediate);
  };
  const open: { close(): Promise<void> }[] = [];
  const opened = <T extends { close(): Promise<void> }>(it: T): T => {
    open.push(it);
    return it;
  };
  const appends: Promise<void>[] = [];
  try {
    let writer = opened(await openWriter(files));
    const reader = opened(await EmbeddedLogReader.open({ folder: FOLDER, partitions: PARTITIONS, files }));
    const consumer = opened(await reader.consume("c"));
    const read = new Map<string, string>();
    const take = async () => {
      const batch = await consumer.read(READ);
      if (batch === undefined) return;
      for (const event of eventsOf(batch)) {
        ledger.promise(event.partition, event.position, event.text);
        read.set(event.partition, event.position);
      }
    };
    for (const step of steps) {
      if (step.do === "append") {
        const events = step.sizes.map((size, i) => ({
          partition: (size + i) % PARTITIONS,
          text: ledger.newText(size),
        }));
        const slices = eventSlices(
          events.map(({ partition, text }) => ({ partition, bytes: Buffer.from(text, "latin1") })),
          (i) => (i * 13) % 29,
          PARTITIONS,
        );
        appends.push(
          writer.append(slices).then(
            (appended) => {
              placesOf(appended).forEach(({ partition, position }, i) => {
                ledger.promise(partition, position, events[i]!.text);
              });
            },
            (error: unknown) => {
              if (!files.crashed) throw error;
            },
          ),
        );
      } else if (step.do === "settle") await Promise.all(appends);
      else if (step.do === "read") await take();
      else if (step.do === "trim") await writer.trim();
      else if (step.do === "commit") {
        const checkpoint = new Map(read);
        await consumer.commit(checkpoint);
        for (const [partition, position] of checkpoint) ledger.committed.set(partition, position);
      } else {
        await writer.close();
        writer = opened(await openWriter(files));
      }
    }
    await Promise.all(appends);
  } catch (error) {
    if (!files.crashed) throw error;
  } finally {
    await Promise.allSettled(appends);
    for (const it of open) await it.close().catch(() => undefined);
  }
}

async function readAll(consumer: StreamConsumer): Promise<ReadEvent[]> {
  const events: ReadEvent[] = [];
  for (let batch = await consumer.read(READ); batch !== undefined; batch = await consumer.read(READ)) {
    events.push(...eventsOf(batch));
  }
  return events;
}

/** Opens what a crash left and holds it against the ledger. */
async function verify(files: SimulatedFiles, ledger: Ledger): Promise<void> {
  const writer = await openWriter(files);
  const reader = await EmbeddedLogReader.open({ folder: FOLDER, files });
  try {
    const lowWater = await reader.lowWater("c");
    const events = await readAll(await reader.consume("c"));
    const head = await reader.head();
    const texts = new Set<string>();
    for (const partition of ["0", "1"]) {
      const done = Number(lowWater.get(partition) ?? 0);
      expect(done).toBeGreaterThanOrEqual(Number(ledger.committed.get(partition) ?? 0));
      const mine = events.filter((event) => event.partition === partition);
      // No gap, no reuse: one position after the other from the low-water record to the head.
      expect(mine.map((event) => Number(event.position))).toEqual(mine.map((_, i) => done + 1 + i));
      expect(Number(head.get(partition) ?? 0)).toBe(done + mine.length);
      for (const event of mine) {
        expect(ledger.appended).toContain(event.text);
        expect(texts).not.toContain(event.text);
        texts.add(event.text);
        ledger.promise(partition, event.position, event.text);
      }
    }
    // All that was acknowledged or delivered is there, at its position and nowhere else.
    const read = new Set(events.map((event) => `${event.partition}/${event.position}`));
    const everywhere = new Set<string>();
    for (const [key, text] of ledger.promised) {
      const [partition, position] = key.split("/") as [string, string];
      if (position > (lowWater.get(partition) ?? "")) expect(read).toContain(key);
      expect(everywhere).not.toContain(text);
      everywhere.add(text);
    }
  } finally {
    await reader.close();
    await writer.close();
  }
}

/** Small, fast, seeded: numbers from 0 to 1. */
function seeded(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const append = (...sizes: number[]): Step => ({ do: "append", sizes });
const then = (step: "settle" | "read" | "commit" | "trim" | "reopen"): Step => ({ do: step });

describe("crashes of the embedded log", () => {
  afterEach(() => expect.hasAssertions());

  test("at every single operation of one history, by power loss and by kill", async () => {
    const history = [
      ...[append(20, 30), append(10), append(300, 40, 50), then("read"), then("settle"), then("read")],
      ...[append(200), append(900), append(5), then("settle"), then("read"), then("commit"), then("trim")],
      ...[then("reopen"), append(60, 61, 62), append(700), then("settle"), then("read"), then("read")],
      ...[then("commit"), append(700), then("settle"), append(8), then("trim"), then("read")],
    ];
    const whole = new SimulatedFiles();
    await session(whole, history, new Ledger());
    const total = whole.operations.length;
    expect(total).toBeGreaterThan(150);
    for (let crashAt = 0; crashAt <= total; crashAt++) {
      for (const way of ["power loss", "kill"]) {
        const files = new SimulatedFiles();
        files.crashAt = crashAt;
        const ledger = new Ledger();
        await session(files, history, ledger);
        const left = way === "kill" ? files.afterKill() : files.afterPowerLoss(seeded(crashAt));
        try {
          await verify(left, ledger);
        } catch (error) {
          throw new Error(`${way} at operation ${crashAt} of ${total}`, { cause: error });
        }
      }
    }
  });

  test("at random, again and again, also while recovering", async () => {
    const step: fc.Arbitrary<Step> = fc.oneof(
      {
        weight: 4,
        arbitrary: fc
          .array(fc.integer({ min: 8, max: 500 }), { minLength: 1, maxLength: 6 })
          .map((sizes) => append(...sizes)),
      },
      { weight: 1, arbitrary: fc.integer({ min: 700, max: 3_000 }).map((size) => append(size)) },
      {
        weight: 4,
        arbitrary: fc
          .constantFrom("settle" as const, "read" as const, "commit" as const, "trim" as const)
          .map(then),
      },
      { weight: 1, arbitrary: fc.constant(then("reopen")) },
    );
    const round = fc.record({
      steps: fc.array(step, { maxLength: 25 }),
      crashAt: fc.integer({ min: 0, max: 250 }),
      powerLoss: fc.boolean(),
      noise: fc.integer(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(round, { minLength: 1, maxLength: 6 }), async (rounds) => {
        let files = new SimulatedFiles();
        const ledger = new Ledger();
        for (const { steps, crashAt, powerLoss, noise } of rounds) {
          files.crashAt = crashAt;
          await session(files, steps, ledger);
          files = powerLoss ? files.afterPowerLoss(seeded(noise)) : files.afterKill();
          if (noise % 2 === 0) await verify(files, ledger);
        }
        await verify(files, ledger);
      }),
      { numRuns: 150 },
    );
  });
});
