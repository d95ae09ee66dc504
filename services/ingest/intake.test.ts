import { setTimeout as sleep } from "node:timers/promises";
import { DuckDBConnection } from "@duckdb/node-api";
import { afterEach, describe, expect, test, vi } from "vitest";
import {
  CAST_SQL,
  expectedThings,
  Lake,
  type TestEvent,
  TestStream,
  THINGS_SQL,
} from "../../test/support/lake.js";
import { commit } from "../../test/support/tables.js";
import { FILE_SHIFT, FLAGS, WORDS } from "../table/order.js";
import { filesThatMayHold } from "./dead-letters.js";

afterEach(() => {
  vi.restoreAllMocks();
});

const HUGE_SQL = `select tenant_id, entity_id,
    case when payload.name = 'huge' then error('it takes 100 GB') else payload.name end as n
  from {{ source('raw', 't.v1.Thing') }}`;

const thing = (id: string, more: Partial<TestEvent> = {}): TestEvent => ({
  tenant: "acme",
  id,
  operation: 1,
  version: 1n,
  thing: { name: id, number: "1" },
  ...more,
});

async function withLake(options: Parameters<typeof Lake.create>[0], work: (lake: Lake) => Promise<void>) {
  const lake = await Lake.create(options);
  try {
    await (await lake.lane()).land(new TestStream("first").batch([]));
    await lake.settled();
    await work(lake);
  } finally {
    await lake.close();
  }
}

/** How many statements have each of these words in their text, from now on. */
function counting<const W extends string>(...words: W[]): Record<W, number> {
  const counts = Object.fromEntries(words.map((word) => [word, 0])) as Record<W, number>;
  const { run } = DuckDBConnection.prototype;
  vi.spyOn(DuckDBConnection.prototype, "run").mockImplementation(function (
    this: DuckDBConnection,
    sql,
    ...rest
  ) {
    for (const word of words) if (String(sql).includes(word)) counts[word]++;
    return run.call(this, sql, ...rest);
  });
  return counts;
}

/** Has the engine say that it has no memory where a model comes to what takes 100 GB; counts how often. */
function exhausting(): { count: number } {
  const exhausted = { count: 0 };
  const { run } = DuckDBConnection.prototype;
  vi.spyOn(DuckDBConnection.prototype, "run").mockImplementation(async function (
    this: DuckDBConnection,
    sql,
    ...rest
  ) {
    return run.call(this, sql, ...rest).catch((error: Error) => {
      if (!error.message.includes("100 GB")) throw error;
      exhausted.count++;
      throw new Error('{"exception_type":"Out of Memory","exception_message":"Allocation failure"}');
    });
  });
  return exhausted;
}

describe("poison", () => {
  test("that exhausts memory is a dead letter; the others go their way, those too that failed beside it", () =>
    withLake({ models: { things: HUGE_SQL } }, async (lake) => {
      // As the engine says it when it has no memory: of the event that needs it, and of one it has taken it from.
      let beside = 1;
      const { run } = DuckDBConnection.prototype;
      vi.spyOn(DuckDBConnection.prototype, "run").mockImplementation(async function (
        this: DuckDBConnection,
        sql,
        ...rest
      ) {
        const memory = new Error(
          '{"exception_type":"Out of Memory","exception_message":"Allocation failure"}',
        );
        if (beside > 0 && String(sql).includes("TABLE batch_rows")) {
          beside--;
          throw memory;
        }
        return run.call(this, sql, ...rest).catch((error: Error) => {
          throw error.message.includes("100 GB") ? memory : error;
        });
      });
      const stream = new TestStream("log");
      await (await lake.lane()).land(stream.batch([thing("alone")]));
      expect(await lake.rows()).toHaveLength(1);
      const events = Array.from({ length: 40 }, (_, i) =>
        thing(`k${i}`, { thing: { name: i === 17 ? "huge" : "small" } }),
      );
      await (await lake.lane()).land(stream.batch(events));
      expect(await lake.rows()).toHaveLength(40);
      expect(await lake.deadLetters()).toEqual(["t.things TRB-INGEST-MEMORY 000000000019"]);
    }));

  test("that exhausts memory is found in a few statements, by the chunk that the engine had", () =>
    withLake({ models: { things: HUGE_SQL } }, async (lake) => {
      const exhausted = exhausting();
      const events = Array.from({ length: 6_000 }, (_, i) =>
        thing(`k${i}`, { thing: { name: i === 4_321 ? "huge" : "small" } }),
      );
      await (await lake.lane()).land(new TestStream("log").batch(events));
      expect(await lake.rows()).toHaveLength(5_999);
      expect(await lake.deadLetters()).toEqual([`t.things TRB-INGEST-MEMORY ${"4322".padStart(12, "0")}`]);
      // The batch, the chunk, and the event alone twice.
      expect(exhausted.count).toBe(4);
    }));

  test("that takes all memory for long is not blamed on another model's event", () =>
    withLake({ models: { things: HUGE_SQL, plain: THINGS_SQL } }, async (lake) => {
      let hog: DuckDBConnection | undefined;
      let hungry = 0;
      const memory = () =>
        new Error('{"exception_type":"Out of Memory","exception_message":"Allocation failure"}');
      const { run } = DuckDBConnection.prototype;
      vi.spyOn(DuckDBConnection.prototype, "run").mockImplementation(async function (
        this: DuckDBConnection,
        sql,
        ...rest
      ) {
        const ofModel = String(sql).includes("TABLE batch_rows");
        // Both begin at once: whether the other has begun is known a moment later.
        if (ofModel) await sleep(50);
        if (ofModel && hog !== undefined && hog !== this) {
          hungry++;
          throw memory();
        }
        try {
          return await run.call(this, sql, ...rest);
        } catch (error) {
          if (!(error as Error).message.includes("100 GB")) throw error;
          hog = this;
          await sleep(1_200);
          hog = undefined;
          throw memory();
        }
      });
      // The one that takes the memory comes first in time.
      const stream = new TestStream("log");
      const lane = await lake.lane();
      const plain = lane.seat("t.plain")!;
      const refine = plain.refine.bind(plain);
      vi.spyOn(plain, "refine").mockImplementation(async (batch, landed) => {
        await sleep(300);
        return refine(batch, landed);
      });
      await lane.land(stream.batch([thing("k", { thing: { name: "huge" } })]));
      await lake.settled();
      expect(hungry).toBeGreaterThan(0);
      expect(await lake.rows("t.plain")).toHaveLength(1);
      expect(await lake.deadLetters()).toEqual(["t.things TRB-INGEST-MEMORY 000000000001"]);
    }));

  test("that takes too long is interrupted, and nothing is tried before that has ended", () =>
    withLake({ models: { things: HUGE_SQL }, ingest: { modelTimeoutMs: 300 } }, async (lake) => {
      const interrupted = new Map<DuckDBConnection, () => void>();
      vi.spyOn(DuckDBConnection.prototype, "interrupt").mockImplementation(function (this: DuckDBConnection) {
        interrupted.get(this)?.();
      });
      const { run } = DuckDBConnection.prototype;
      const running = new Map<DuckDBConnection, number>();
      let most = 0;
      vi.spyOn(DuckDBConnection.prototype, "run").mockImplementation(async function (
        this: DuckDBConnection,
        sql,
        ...rest
      ) {
        running.set(this, (running.get(this) ?? 0) + 1);
        most = Math.max(most, running.get(this)!);
        try {
          return await run.call(this, sql, ...rest);
        } catch (error) {
          if (!(error as Error).message.includes("100 GB")) throw error;
          // One that hangs until it is interrupted, and then takes its time.
          await new Promise<void>((resolve) => interrupted.set(this, resolve));
          await sleep(50);
          throw new Error('{"exception_type":"INTERRUPT","exception_message":"Interrupted!"}');
        } finally {
          running.set(this, running.get(this)! - 1);
        }
      });
      const events = Array.from({ length: 40 }, (_, i) =>
        thing(`k${i}`, { thing: { name: i === 17 ? "huge" : "small" } }),
      );
      await (await lake.lane()).land(new TestStream("log").batch(events));
      await lake.settled();
      expect(await lake.rows()).toHaveLength(39);
      expect(await lake.deadLetters()).toEqual(["t.things TRB-INGEST-TIME 000000000018"]);
      expect(most).toBe(1);
    }));

  test("that makes a row which no reader could hold, or no file takes, is a dead letter", () =>
    withLake(
      {
        models: {
          things: `select tenant_id, entity_id,
            repeat(payload.name, case when payload.name = '0123456789' then 7000000 else 1 end) as n
          from {{ source('raw', 't.v1.Thing') }}`,
        },
      },
      async (lake) => {
        const { runAndReadAll } = DuckDBConnection.prototype;
        vi.spyOn(DuckDBConnection.prototype, "runAndReadAll").mockImplementation(async function (
          this: DuckDBConnection,
          sql,
          ...rest
        ) {
          if (/^COPY .*FROM batch_rows/s.test(sql)) {
            const found = await runAndReadAll.call(this, "SELECT 1 FROM batch_rows WHERE n = 'unwritable'");
            if (found.currentRowCount > 0) throw new Error("Out of Memory Error: could not allocate block");
          }
          return runAndReadAll.call(this, sql, ...rest);
        });
        const names = new Map([
          [3, "0123456789"],
          [11, "unwritable"],
        ]);
        const events = Array.from({ length: 20 }, (_, i) =>
          thing(`k${i}`, { thing: { name: names.get(i) ?? "small" } }),
        );
        const target = await lake.target();
        await (await lake.lane()).land(new TestStream("log").batch(events));
        expect(await lake.rows()).toHaveLength(18);
        expect(await lake.deadLetters()).toEqual([
          "t.things TRB-INGEST-MEMORY 000000000004",
          "t.things TRB-INGEST-MEMORY 000000000012",
        ]);
        // Without being opened from scratch.
        expect(await lake.target()).toBe(target);
      },
    ));

  test("is found without writing the batch's keys again for each guess, in some bad × log n small statements", () =>
    withLake({ models: { things: CAST_SQL } }, async (lake) => {
      const bad = 12;
      const count = 1024;
      const events = Array.from({ length: count }, (_, i) =>
        thing(`k${i}`, { thing: { number: i % 85 === 3 && i < bad * 85 ? "no" : String(i) } }),
      );
      const counts = counting("TABLE batch_keys", "TABLE attempt");
      await (await lake.lane()).land(new TestStream("log").batch(events));
      expect(await lake.rows()).toHaveLength(count - bad);
      expect(await lake.deadLetters()).toHaveLength(bad);
      expect(counts["TABLE batch_keys"]).toBeLessThanOrEqual(2);
      expect(counts["TABLE attempt"]).toBeGreaterThan(bad);
      expect(counts["TABLE attempt"]).toBeLessThanOrEqual(2 * bad * Math.log2(count));
    }));

  test("in many versions of one entity does not run the whole batch again for each", () =>
    withLake({ models: { things: CAST_SQL } }, async (lake) => {
      const versions = Array.from({ length: 20 }, (_, i) =>
        thing("often", { version: BigInt(i + 1), thing: { number: i === 4 ? "5" : "no" } }),
      );
      const others = Array.from({ length: 200 }, (_, i) => thing(`k${i}`, { thing: { number: String(i) } }));
      const { run } = DuckDBConnection.prototype;
      let events = 0;
      vi.spyOn(DuckDBConnection.prototype, "run").mockImplementation(async function (
        this: DuckDBConnection,
        sql,
        ...rest
      ) {
        const result = await run.call(this, sql, ...rest);
        if (String(sql).includes("TABLE batch_keys")) {
          events += Number((await this.runAndReadAll("SELECT count(*) FROM batch_keys")).getRows()[0]![0]);
        }
        return result;
      });
      await (await lake.lane()).land(new TestStream("log").batch([...versions, ...others]));
      expect(await lake.rows()).toContain(JSON.stringify(["acme", "often", "5", 5]));
      expect(await lake.rows()).toHaveLength(201);
      // Those that are newer than the one that stands; older ones lose without being looked at.
      expect(await lake.deadLetters()).toHaveLength(15);
      expect(events).toBeLessThan(3 * 201);
    }));
});

test("an index that is wrong is forgotten, and the batch comes in by the catch-up", () =>
  withLake({}, async (lake) => {
    const stream = new TestStream("log");
    const lane = await lake.lane();
    const first = [thing("a"), thing("b")];
    await lane.land(stream.batch(first));
    const target = await lake.target();
    const { writer, table } = target;
    const records = new Uint32Array(WORDS);
    const acme = Buffer.from("acme");
    const id = Buffer.from("a");
    writer.keys.put(records, 0, acme, 0, acme.length, id, 0, id.length);
    records[FLAGS] = 1 | (7 << FILE_SHIFT);
    const placed = [{ records, ords: [0], path: "not-there.parquet", tombstones: false }];
    writer.locator.applied({ version: table.snapshot.version + 1, placed });
    expect((await commit(table, [])).kind).toBe("committed");
    const second = [thing("a", { version: 2n })];
    await lane.land(stream.batch(second));
    expect(await lake.rows()).toEqual(expectedThings([...first, ...second]));
    // By itself: nothing had to be opened from scratch.
    expect(await lake.target()).toBe(target);
  }));

test("burying letters looks only into files that may hold them, and keeps the files few", () =>
  withLake({}, async (lake) => {
    const { deadLetters } = lake.context;
    const letter = (n: number) => ({
      model: "t.things",
      code: "TRB-MODEL-FAILED",
      reason: "of the test",
      stream: "log",
      partition: "0",
      position: String(n).padStart(12, "0"),
      receivedAt: 0,
      event: Buffer.from("x"),
    });
    for (let n = 1; n <= 15; n++) await deadLetters.add([letter(n)]);
    const at = (n: number) => filesThatMayHold(deadLetters.table.snapshot, [letter(n)]).length;
    expect(at(16)).toBe(0);
    expect(at(7)).toBe(1);
    await deadLetters.add([letter(7)]);
    for (let n = 16; n <= 40; n++) await deadLetters.add([letter(n)]);
    expect(deadLetters.table.snapshot.files.length).toBeLessThan(20);
    await deadLetters.add([letter(3), letter(41)]);
    expect(await lake.deadLetters()).toHaveLength(41);
  }));
