import { readdirSync } from "node:fs";
import { afterEach, describe, expect, test, vi } from "vitest";
import { Random, seeds } from "../../test/support/lake.js";
import { TableWriter, type Write } from "../../test/support/table-writers.js";
import { NEVER, openWorkbench } from "../../test/support/tables.js";
import { KeyRun } from "./key-run.js";
import { CONTENT_LO, HASH1, HASH2, ROW, SLOT, TENANT, VERSION_LO, WORDS } from "./order.js";

const { store, duck, freshRoot } = await openWorkbench();

const writers: TableWriter[] = [];
afterEach(async () => {
  vi.restoreAllMocks();
  for (const writer of writers.splice(0)) await writer.close();
});

async function open(root: string, indexBytes: number, manyRows?: number): Promise<TableWriter> {
  const options = { ...NEVER, indexBytes, ...(manyRows === undefined ? {} : { manyRows }) };
  const writer = await TableWriter.open(store, duck, root, options);
  writers.push(writer);
  return writer;
}

const AMPLE = 1 << 26;
/** Room for entities of small files alone. */
const SCANT = 8 * 1024;
const ROWS = 300;

const write = (i: number, version: number, operation = 2): Write => ({
  tenant: i % 2 === 0 ? "acme" : "globex",
  id: `e${i}`,
  version,
  operation,
  content: operation === 3 ? 0n : 1n,
});
const all = (version: number, operation = 2) =>
  Array.from({ length: ROWS }, (_, i) => write(i, version, operation));

describe("entities of a large file that another writer has put in", () => {
  for (const [name, indexBytes] of [
    ["go into the index", AMPLE],
    ["go into runs, where the index has no room", SCANT],
    ["go into runs, where there is no index", 0],
  ] as const) {
    test(`are found at once, and ${name} beside the batches`, async () => {
      const root = freshRoot();
      const [other, mine] = [await open(root, AMPLE), await open(root, indexBytes, 100)];
      await mine.upsert([write(0, 1), write(ROWS, 1)]);
      await other.table.refresh();
      await other.upsert(all(5));
      await mine.table.refresh();
      let goOn: () => void = () => undefined;
      const held = new Promise<void>((resolve) => {
        goOn = resolve;
      });
      const reading = duck.with.bind(duck);
      // A batch does not wait for it.
      const reads = vi.spyOn(duck, "with").mockImplementation(async (use) => {
        await held;
        return reading(use);
      });
      expect(await mine.upsert([write(1, 4), write(2, 6), write(3, 6, 3)])).toMatchObject({
        live: 1,
        tombstones: 1,
        lost: 1,
        touchedFiles: 1,
      });
      expect(reads).toHaveBeenCalledTimes(1);
      goOn();
      await mine.writer.locator.settled();
      reads.mockRestore();
      expect(await mine.upsert([write(1, 5), write(2, 5), write(3, 5), write(4, 6)])).toMatchObject({
        live: 1,
        lost: 3,
      });
      // Tombstones, too, and what comes between a batch's look and its commit.
      await other.table.refresh();
      await other.upsert(all(7, 3));
      expect(await mine.upsert([write(5, 6), write(6, 8)])).toMatchObject({
        kind: "committed",
        live: 1,
        lost: 1,
      });
      await mine.writer.locator.settled();
      expect(await mine.upsert([write(7, 6), write(8, 8)])).toMatchObject({ live: 1, lost: 1 });
      expect(await mine.rows()).toEqual(["acme|e6|v8-1", "acme|e8|v8-1", "acme|e300|v1-1"].sort());
      const indexed = mine.writer.locator.indexedKeys ?? 0;
      if (indexBytes === AMPLE) expect(indexed).toBeGreaterThan(ROWS);
      else expect(indexed).toBeLessThan(ROWS);
      expect(readdirSync(store.staging)).toEqual([]);
    });
  }
});

test("a run finds each of its records, and none that it lacks", () => {
  for (const seed of seeds(2)) {
    const random = new Random(seed);
    const count = 1 + random.below(2000);
    // Few hashes, so that they collide over the bounds of blocks.
    const hashes = 1 + random.below(count);
    const records = new Uint32Array(2 * count * WORDS);
    for (let i = 0; i < 2 * count; i++) {
      const at = i * WORDS;
      records[at + HASH1] = (random.below(hashes) * 2654435761) >>> 0;
      records[at + HASH2] = i;
      records[at + SLOT] = random.below(7);
      records[at + TENANT] = random.below(3);
      records[at + VERSION_LO] = random.below(100);
      records[at + CONTENT_LO] = i;
      records[at + ROW] = i;
    }
    const run = KeyRun.of(store.staging, records.slice(), count);
    try {
      for (let i = 0; i < 2 * count; i++) {
        const found = run.find(records, i * WORDS);
        expect(found >= 0, `seed ${seed}, ${i} of ${count}`).toBe(i < count);
        if (found >= 0)
          expect(run.records.slice(found, found + WORDS)).toEqual(records.slice(i * WORDS, (i + 1) * WORDS));
      }
    } finally {
      run.close();
    }
  }
});
