import { describe, expect, test } from "vitest";
import { eventSlices, eventsOf, positionsIn } from "../../../test/support/event-slices.js";
import { Random, seeds } from "../../../test/support/lake.js";
import { SimulatedFiles } from "../../../test/support/simulated-files.js";
import type { FileOps } from "../../base/files.js";
import { EmbeddedLogReader } from "./reader.js";
import { EmbeddedLogWriter } from "./writer.js";

/** Two writers that do not see each other's lock: what each acknowledges stays what it is, where it is. */

const FOLDER = "/simulated/stream";
const READ = { maxEvents: 50, maxBytes: 1e6, waitMs: 0 };
const event = (text: string, partition = 0) =>
  eventSlices([{ partition, bytes: Buffer.from(text) }], undefined, 2);
const fenced = { code: "TRB-STREAM-FENCED" };

/** As a process sees the files to which all locks of others are hidden; `pause` is awaited before each operation. */
function blindTo(files: SimulatedFiles, pause: (step: string) => Promise<void> | void): FileOps {
  const wrapped: Record<string, unknown> = {};
  for (const name of ["link", "rename", "unlink", "stat", "syncFolder", "makeFolder"] as const) {
    const run = files[name].bind(files) as (...args: string[]) => Promise<unknown>;
    wrapped[name] = async (...args: string[]) => {
      await pause(`${name} ${args.at(-1)}`);
      return run(...args);
    };
  }
  return {
    ...(wrapped as Pick<FileOps, "link" | "rename" | "unlink" | "stat" | "syncFolder" | "makeFolder">),
    setReadOnly: (path) => files.setReadOnly(path),
    watch: (folder, onChange) => files.watch(folder, onChange),
    list: async (folder) => {
      await pause(`list ${folder}`);
      return (await files.list(folder)).filter(({ name }) => !name.endsWith(".lock"));
    },
    open: async (path, how) => {
      await pause(`open ${path}`);
      const file = await files.open(path, how);
      const paused =
        <A extends unknown[], R>(name: string, run: (...args: A) => Promise<R>) =>
        async (...args: A) => {
          if (!path.endsWith(".lock")) await pause(`${name} ${path}`);
          return run(...args);
        };
      return {
        read: paused("read", file.read),
        write: paused("write", file.write),
        truncate: paused("truncate", file.truncate),
        dataSync: paused("dataSync", file.dataSync),
        size: file.size,
        close: file.close,
      };
    },
  };
}

const open = (files: FileOps, segmentBytes = 100_000) =>
  EmbeddedLogWriter.open({ folder: FOLDER, partitions: 2, segmentBytes, groupBytes: 2_000, files });

/** Reads to the end into `seen`; no position may ever show two events. */
async function readInto(seen: Map<string, string>, files: FileOps, name: string): Promise<void> {
  const reader = await EmbeddedLogReader.open({ folder: FOLDER, files });
  try {
    const consumer = await reader.consume(name);
    for (let batch = await consumer.read(READ); batch !== undefined; batch = await consumer.read(READ)) {
      for (const { partition, position, text } of eventsOf(batch))
        note(seen, `${partition}/${position}`, text);
    }
  } finally {
    await reader.close();
  }
}

function note(seen: Map<string, string>, key: string, text: string, where = ""): void {
  const before = seen.get(key);
  if (before !== undefined && before !== text)
    throw new Error(`position ${key} holds ${before} and ${text} ${where}`);
  seen.set(key, text);
}

/** Writers, each of one event, that come in one another's way on one log. */
class Race {
  private readonly files = new SimulatedFiles();
  private readonly acknowledged = new Map<string, string>();
  private readonly writers: EmbeddedLogWriter[] = [];

  /** Begins an empty segment. */
  async begin(pause: (step: string) => Promise<void> | void = () => undefined): Promise<EmbeddedLogWriter> {
    const writer = await open(blindTo(this.files, pause));
    this.writers.push(writer);
    return writer;
  }

  /** Opens the log, deletes empty segments and appends `name`; that another took over is no failure. */
  async write(name: string, pause?: (step: string) => Promise<void> | void): Promise<void> {
    try {
      const writer = await this.begin(pause);
      await writer.trim().catch(() => undefined); // another may be at the same segment
      note(this.acknowledged, `0/${positionsIn(await writer.append(event(name)))}`, name);
    } catch (error) {
      expect(error, name).toMatchObject(fenced);
    }
  }

  /** As `write`, but stops before the step that `when` says, told with the one before it, until it may go on. */
  stopping(name: string, when: (step: string, before: string) => boolean) {
    let goOn = () => {};
    const allowed = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    let done = Promise.resolve();
    const stopped = new Promise<void>((resolve, reject) => {
      let before = "";
      let met = false;
      done = this.write(name, async (step) => {
        const isIt = !met && when(step, before);
        before = step;
        if (!isIt) return;
        met = true;
        resolve();
        await allowed;
      }).finally(() => reject(new Error(`${name} did not come to where it was to stop`)));
    });
    return { stopped, goOn, done };
  }

  /** All that was acknowledged is what is read, each once. */
  async settle(what: string): Promise<void> {
    const seen = new Map<string, string>();
    await readInto(seen, this.files, "after");
    for (const [key, text] of this.acknowledged) expect(seen.get(key), what).toBe(text);
    expect(new Set(seen.values()).size, what).toBe(seen.size);
    for (const writer of this.writers) await writer.close();
  }
}

describe("a writer that was taken over", () => {
  test("acknowledges nothing more, tells so, and stops", async () => {
    const files = new SimulatedFiles();
    const first = await open(blindTo(files, () => undefined));
    await first.append(event("one"));
    const second = await open(blindTo(files, () => undefined));
    const waiting = Promise.allSettled([first.append(event("a")), first.append(event("b"))]);
    expect(positionsIn(await second.append(event("two")))).toEqual(["0000000000000002"]);
    for (const append of await waiting) expect(append).toMatchObject({ status: "rejected", reason: fenced });
    await expect(first.append(event("c"))).rejects.toMatchObject(fenced);
    const seen = new Map<string, string>();
    await readInto(seen, files, "r");
    expect([...seen.values()]).toEqual(["one", "two"]);
    // What it wrote behind the successor's back is not there for a third one either.
    const third = await open(blindTo(files, () => undefined));
    expect(positionsIn(await third.append(event("three")))).toEqual(["0000000000000003"]);
    for (const writer of [first, second, third]) await writer.close();
  });

  test("also when its segment was put back as another file of the same name", async () => {
    const files = new SimulatedFiles();
    const writer = await open(blindTo(files, () => undefined));
    const path = `${FOLDER}/log/000000000001.seg`;
    await files.rename(path, `${FOLDER}/elsewhere`);
    await (await files.open(path, "create")).write(Buffer.from("restored"), 0);
    await expect(writer.append(event("x"))).rejects.toMatchObject(fenced);
    await writer.close();
  });

  test("at any single operation of an append, a rolled segment or a reader beside it", async () => {
    for (const size of [10, 900]) {
      for (let at = 0; ; at++) {
        const files = new SimulatedFiles();
        const seen = new Map<string, string>();
        const acknowledged = new Map<string, string>();
        let steps = -1;
        const others: EmbeddedLogWriter[] = [];
        const slow = blindTo(files, async () => {
          if (steps < 0 || steps++ !== at) return;
          await readInto(seen, files, "before");
          // Two, so that also the name of the segment that the first is about to begin is free again.
          for (const name of ["second", "third"]) {
            const other = await open(
              blindTo(files, () => undefined),
              1_000,
            );
            others.push(other);
            note(acknowledged, `0/${positionsIn(await other.append(event(name)))}`, name);
          }
        });
        const first = await open(slow, 1_000);
        for (const text of ["a".repeat(600), "b"]) {
          note(acknowledged, `0/${positionsIn(await first.append(event(text)))}`, text);
        }
        steps = 0;
        const text = "c".repeat(size);
        await first.append(event(text)).then(
          (appended) => note(acknowledged, `0/${positionsIn(appended)}`, text),
          (error: unknown) => expect(error).toMatchObject(fenced),
        );
        const struck = others.length > 0;
        await readInto(seen, files, "after");
        for (const [key, event] of acknowledged) expect(seen.get(key), `operation ${at}`).toBe(event);
        for (const writer of [first, ...others]) await writer.close();
        if (!struck) {
          expect(at).toBeGreaterThan(size === 10 ? 2 : 8);
          break;
        }
      }
    }
  });

  test.each(["one event", "nothing"])("at any operation of its opening a log of %s", async (content) => {
    for (let at = 0, struck = true; struck; at++) {
      const race = new Race();
      if (content === "nothing") await race.begin();
      else await race.write("before");
      struck = false;
      let steps = 0;
      await race.write("slow", async () => {
        if (steps++ !== at) return;
        struck = true;
        // Two, so that also the name of the segment that the slow one is about to begin is free again.
        for (const name of ["second", "third"]) await race.write(name);
      });
      await race.settle(`operation ${at}`);
      if (!struck) expect(at).toBeGreaterThan(20);
    }
  });

  test("while it begins the very segment that another has begun, as a third one takes that over", async () => {
    const race = new Race();
    await race.write("before");
    const second = race.stopping("second", (step) => /^open .*2\.seg.*tmp/.test(step));
    await second.stopped; // the log is its own, and it is about to begin segment 2
    const slow = race.stopping("slow", (step) => step.startsWith("link"));
    await slow.stopped; // so is this one, and has seen that there is no segment 2
    second.goOn();
    await second.done;
    const third = race.stopping("third", (_, before) => /^rename .*2\.fenced\.seg/.test(before));
    await third.stopped; // the name of segment 2 is free
    slow.goOn();
    await slow.done;
    third.goOn();
    await third.done;
    await race.settle("the race");
  });

  test("while several take over from each other and others read, at random", async () => {
    for (const seed of seeds(12)) {
      const random = new Random(seed);
      const files = new SimulatedFiles();
      const seen = new Map<string, string>();
      const acknowledged = new Map<string, string>();
      const pause = async () => {
        const turns = random.chance(0.03) ? 60 : random.below(4);
        for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate);
      };
      const write = async (name: string, after: number) => {
        for (let turn = 0; turn < after; turn++) await new Promise(setImmediate);
        const writer = await open(blindTo(files, pause), 700).catch((error: unknown) => {
          expect(error, `seed ${seed}`).toMatchObject(fenced);
          return undefined;
        });
        if (writer === undefined) return;
        const appends: Promise<void>[] = [];
        for (let n = 0; n < 25; n++) {
          const text = `${name}-${n}-`.padEnd(10 + random.below(200), ".");
          const partition = n % 2;
          appends.push(
            writer.append(event(text, partition)).then(
              (appended) =>
                note(acknowledged, `${partition}/${positionsIn(appended)}`, text, `(seed ${seed})`),
              (error: unknown) => expect(error, `seed ${seed}`).toMatchObject(fenced),
            ),
          );
          if (random.chance(0.6)) await appends.at(-1);
        }
        await Promise.all(appends);
        await writer.close();
      };
      let writing = true;
      const writers = Promise.all(
        ["A", "B", "C", "D"].map((name, i) => write(name, i * random.below(900))),
      ).finally(() => {
        writing = false;
      });
      const readers = ["r", "s"].map(async (name) => {
        const reader = await EmbeddedLogReader.open({
          folder: FOLDER,
          partitions: 2,
          files: blindTo(files, pause),
        });
        const consumer = await reader.consume(name);
        while (writing) {
          const batch = await consumer.read({ ...READ, waitMs: 1 });
          for (const { partition, position, text } of batch === undefined ? [] : eventsOf(batch))
            note(seen, `${partition}/${position}`, text, `(seed ${seed})`);
        }
        await reader.close();
      });
      await Promise.all([writers, ...readers]);
      await readInto(seen, files, "late");
      for (const [key, text] of acknowledged) expect(seen.get(key), `seed ${seed}`).toBe(text);
      expect(new Set(seen.values()).size, `seed ${seed}`).toBe(seen.size);
      const last = await open(blindTo(files, () => undefined));
      await last.close();
    }
  });
});
