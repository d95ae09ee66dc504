import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DuckDBConnection } from "@duckdb/node-api";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { Lake, TestStream } from "../../test/support/lake.js";
import { whole } from "./payloads.js";
import { type Part, Suspects } from "./suspects.js";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "tributary-suspects-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const things = (count: number) =>
  new TestStream("log").batch(
    Array.from({ length: count }, (_, i) => ({
      tenant: "acme",
      id: `k${i}`,
      operation: 1,
      version: 1n,
      thing: { name: String(i) },
    })),
  );

/** Runs the parts, as a process does that ends when it comes to `poison`; tells what it was on, or that it got through. */
async function run(poison: string, count: number): Promise<Part | undefined> {
  const suspects = Suspects.open(folder);
  for (const part of suspects.partsOf("t.things", whole(things(count)))) {
    if (part.condemned) continue;
    const ended = await suspects.begin("t.things", part);
    if (part.slice.events.positions.includes(poison)) return part;
    ended(false);
  }
  return undefined;
}

test("what ends the process is found in a few restarts, and is run no more", async () => {
  const poison = "000000000777";
  const sizes: number[] = [];
  for (let left = await run(poison, 1000); left !== undefined; left = await run(poison, 1000)) {
    sizes.push(left.slice.events.count);
    expect(sizes.length).toBeLessThan(8);
  }
  expect(sizes[0]).toBe(1000);
  expect(sizes.slice(-2)).toEqual([1, 1]);
  const parts = Suspects.open(folder).partsOf("t.things", whole(things(1000)));
  const condemned = parts.filter((part) => part.condemned);
  expect(condemned.map(({ slice }) => slice.events.positions)).toEqual([[poison]]);
});

test("a kill from outside costs smaller pieces once, and no event", async () => {
  const suspects = Suspects.open(folder);
  await suspects.begin("t.killed", suspects.partsOf("t.killed", whole(things(100)))[0]!);
  const next = Suspects.open(folder);
  const parts = next.partsOf("t.killed", whole(things(120)));
  expect(parts.map(({ trial }) => trial)).toEqual([false, ...Array.from({ length: 15 }, () => true)]);
  expect(parts.reduce((sum, { slice }) => sum + slice.events.count, 0)).toBe(120);
  for (const part of parts) (await next.begin("t.killed", part))(false);
  expect(Suspects.open(folder).partsOf("t.killed", whole(things(120)))).toHaveLength(1);
});

test("an event that has ended the process again and again is a dead letter; the others go their way", async () => {
  const lake = await Lake.create();
  try {
    const batch = things(20);
    for (let strikes = 0; strikes < 3; strikes++) {
      const suspects = Suspects.open(join(lake.folder, "scratch", "suspects"));
      const one = batch.filter((i) => i === 4);
      await suspects.begin("t.things", { slice: whole(one), trial: true, condemned: false });
    }
    await lake.reopen();
    const lane = await lake.lane();
    await lake.settled();
    await lane.land(batch);
    await lake.settled();
    expect(await lake.rows()).toHaveLength(19);
    expect(await lake.deadLetters()).toEqual(["t.things TRB-INGEST-MEMORY 000000000005"]);
    expect((await lake.target()).inStep(lane.rawProgress())).toBe(true);
  } finally {
    await lake.close();
  }
});

test("an event that breaks the engine is found as one that ends the process is", async () => {
  const lake = await Lake.create();
  const { run } = DuckDBConnection.prototype;
  let broken = 0;
  vi.spyOn(DuckDBConnection.prototype, "run").mockImplementation(async function (
    this: DuckDBConnection,
    sql,
    ...rest
  ) {
    if (String(sql).includes("TABLE batch_rows")) {
      const reader = await this.runAndReadAll("SELECT 1 FROM batch_keys WHERE entity_id = 'k4'");
      if (reader.currentRowCount > 0) {
        broken++;
        throw new Error("INTERNAL Error: an assertion of the engine");
      }
    }
    return run.call(this, sql, ...rest);
  });
  try {
    await (await lake.lane()).land(things(20));
    for (let starts = 0; starts < 8 && (await lake.deadLetters()).length === 0; starts++) {
      // What is a new process, once the engine has answered nothing any more.
      const seen = broken;
      const lane = await lake.lane();
      while (lane.behind && broken === seen) await sleep(2);
      await lake.reopen();
    }
    await lake.settled();
    expect(await lake.rows()).toHaveLength(19);
    expect(await lake.deadLetters()).toEqual(["t.things TRB-INGEST-MEMORY 000000000005"]);
  } finally {
    vi.restoreAllMocks();
    await lake.close();
  }
});
