import { rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { fileStore, temporaryFolder } from "../../test/support/lake.js";
import type { BoundModel } from "../models/bind.js";
import { readWorkers, writeWorkerStatus } from "../status/ingest-status.js";
import type { ObjectStore } from "../storage/object-store.js";
import { projectOf, SharedCrew } from "./crew.js";

const model = (name: string, fingerprint: string) => ({ name, fingerprint }) as BoundModel;
const MODELS = [model("t.a", "fa"), model("t.b", "fb")];

let folder: string;
let store: ObjectStore;
let crews: SharedCrew[];
beforeEach(async () => {
  folder = temporaryFolder();
  store = await fileStore(folder);
  crews = [];
});
afterEach(async () => {
  for (const crew of crews) await crew.close();
  rmSync(folder, { recursive: true, force: true });
});

/** Minutes of the real thing in seconds. */
const TIMES = { look: 50, gone: 1_500, free: 500, forget: 60_000, lease: 1_000 };

async function join(name: string, models = MODELS): Promise<SharedCrew> {
  const crew = new SharedCrew(store, name, models, pino({ level: "silent" }), TIMES);
  crews.push(crew);
  await crew.start();
  return crew;
}

/** A worker as others see it: it goes on writing until it is told to fall silent. */
function speaker(name: string, fingerprints: string[], partitions: string[]): () => Promise<void> {
  const stopping = new AbortController();
  const speaking = (async () => {
    while (!stopping.signal.aborted) {
      await writeWorkerStatus(store, name, {
        writtenAt: new Date().toISOString(),
        tables: [],
        fingerprints,
        holds: { s: partitions },
      });
      await sleep(50);
    }
  })();
  return () => {
    stopping.abort();
    return speaking;
  };
}

const soon = { timeout: 15_000 };

describe("workers of one lake", () => {
  test("share the tables out: each is tended by one, and by another when that one has gone", async () => {
    const [a, b] = [await join("a"), await join("b")];
    const tables = ["raw/t.v1.A", "raw/t.v1.B", "t.a", "t.b"];
    const tended = () => tables.map((table) => [a, b].filter((crew) => crew.tends(table)).length);
    await expect.poll(tended, soon).toEqual([1, 1, 1, 1]);
    await expect.poll(() => tables.filter((table) => a.tends(table)).length, soon).toBe(2);
    await b.close();
    await expect.poll(() => tables.every((table) => a.tends(table)), soon).toBe(true);
  }, 40_000);

  test("of different releases each tend their own", async () => {
    const [old, other] = [await join("a"), await join("b", [model("t.a", "fa"), model("t.b", "new")])];
    await expect.poll(() => [old.tends("t.b"), other.tends("t.b")], soon).toEqual([true, true]);
    expect(projectOf([...MODELS].reverse())).toBe(projectOf(MODELS));
  }, 40_000);

  test("tell what they hold: a track is free once nobody of this release has held it for a while", async () => {
    const silence = [speaker("b", ["fa", "fb"], ["1"]), speaker("older", ["fa", "old"], ["2"])];
    await expect.poll(async () => (await readWorkers(store)).size, soon).toBe(2);
    const a = await join("a");
    const free = () => ["s.1", "s.2", "s.3"].map((track) => a.isFree(track));
    // Nobody knows yet who else there is.
    expect(free()).toEqual([false, false, false]);
    await expect.poll(free, soon).toEqual([false, true, true]);
    expect([a.runs("old"), a.runs("fb"), a.runs("nobody's")]).toEqual([true, true, false]);
    const mixed = a.lookMs;
    await Promise.all(silence.map((fall) => fall()));
    await expect
      .poll(() => [a.isFree("s.1"), a.runs("old"), a.runs("fb")], soon)
      .toEqual([true, false, false]);
    expect(mixed).toBeLessThan(a.lookMs);
  }, 40_000);
});
