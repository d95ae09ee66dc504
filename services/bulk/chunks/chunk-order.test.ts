import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { inlineProtos } from "../../../test/support/inline-protos.js";
import { Duck, literal, rowsOf } from "../../base/duckdb.js";
import { CSV_DEFAULTS } from "../../sources/formats.js";
import { HeldFile } from "../../sources/held-file.js";
import { mappingShape } from "../../sources/mapping.js";
import { ChunkMaker } from "./chunk-maker.js";

const registry = inlineProtos({
  "t.proto":
    'syntax = "proto3"; package t; message Row { string name = 1; int64 amount = 2; string customer = 3; string id = 4; }',
});
const TYPE = "t.Row";
const MODEL = `SELECT tenant_id, entity_id, payload.name AS name, payload.amount AS amount FROM "${TYPE}"`;
const columns = Object.entries({
  tenant_id: "VARCHAR",
  entity_id: "VARCHAR",
  name: "VARCHAR",
  amount: "BIGINT",
}).map(([name, type]) => ({ name, type, description: undefined }));
/** By name: as it is, with rows left out, in an order of its own. */
const MODELS = {
  all: MODEL,
  some: `${MODEL} WHERE payload.amount % 2 = 0`,
  backwards: `${MODEL} ORDER BY entity_id DESC, tenant_id`,
};
const MAPPING = mappingShape.parse({ tenant: "customer", entityId: "id", version: "rev" });

interface Row {
  readonly customer: string;
  readonly id: string;
  readonly rev: number;
  readonly name: string;
  readonly amount: number;
}
const rows = fc.array(
  fc.record({
    customer: fc.constantFrom("a", "b", "B"),
    id: fc.constantFrom(...Array.from({ length: 40 }, (_, i) => `é${i}`), "x", "\u{1f600}"),
    rev: fc.nat({ max: 2 }),
    name: fc.constantFrom("", "short", "one that is longer than twelve bytes"),
    amount: fc.nat({ max: 4 }),
  }),
  { minLength: 1, maxLength: 60 },
);
const bytesOf = ({ customer, id }: Pick<Row, "customer" | "id">): Buffer => Buffer.from(`${customer}\n${id}`);

test("the order of an export changes nothing but positions: files are in the order of keys, winners are the same", async () => {
  const folder = mkdtempSync(join(tmpdir(), "tributary-order-"));
  const duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
  const looker = await duck.connect();
  const read = (sql: string) => rowsOf(looker, sql);

  /** What a chunk of these rows is, in the order that they stand in. */
  async function chunkOf(given: readonly Row[]) {
    // Of their own: an engine knows what it has read by its path.
    const inside = mkdtempSync(join(folder, "chunk-"));
    const path = (name: string) => join(inside, `${name}.parquet`);
    const models = Object.entries(MODELS).map(([name, sql]) => ({
      ...{ name, sql, columns },
      ...{ out: path(name), tombstones: path(`${name}-tombstones`) },
    }));
    const values = given.map(
      ({ customer, id, rev, name, amount }) =>
        `(${literal(customer)}, ${literal(id)}, ${rev}, ${literal(name)}, ${amount})`,
    );
    await looker.run(
      `COPY (SELECT * FROM (VALUES ${values.join(", ")}) t(customer, id, rev, name, amount)) TO ${literal(path("source"))}`,
    );
    const unit = {
      ...{ shown: "source", path: path("source"), identity: undefined, compression: "none" as const },
      ...{ format: "parquet" as const, partition: {}, csv: CSV_DEFAULTS },
      ...{ maxRecordBytes: 1 << 20, batchBytes: 1 << 20 },
    };
    // One engine a maker: what functions are called is known to all of an engine.
    const own = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
    const file = await HeldFile.open(unit);
    const maker = await ChunkMaker.open(
      own,
      [file],
      {
        ...{
          type: "open",
          files: [{ unit, file: 0, bytes: 1 }],
          from: { row: 0 },
          mapping: MAPPING,
          out: path("raw"),
          models,
        },
        ...{
          payloads: { sizes: { maxPayloadBytes: 1 << 20, maxOffloadBytes: 1 << 20 }, aside: path("aside") },
        },
        ...{ descriptors: registry.bytes(), entityType: TYPE, tenant: undefined, leaves: undefined },
        ...{ stream: "bootstrap:o", partition: "0" },
      },
      () => undefined,
      () => undefined,
    );
    const chunk = await maker.next({ type: "next", rows: 1000, bytes: 1 << 30 });
    own.close();
    await file.close();
    expect(chunk.file.rows).toBe(given.length);
    const keys = (name: string) =>
      read(
        `SELECT tenant_id, entity_id FROM read_parquet(${literal(path(name))}, file_row_number=true) ORDER BY file_row_number`,
      );
    const made: Record<string, unknown> = {};
    for (const { name, rows: written, tombstones } of chunk.refined!.models) {
      const found = await read(
        `SELECT * FROM read_parquet(${literal(path(name))}, file_row_number=true) ORDER BY file_row_number`,
      );
      expect(found.length).toBe(written.rows);
      const gone = tombstones === undefined ? [] : await keys(`${name}-tombstones`);
      made[name] = [found, gone];
    }
    const raw = await read(
      `SELECT tenant_id, entity_id, version, payload::VARCHAR FROM read_parquet(${literal(path("raw"))}) ORDER BY ALL`,
    );
    return { raw, made, order: await keys("raw"), ranges: [...chunk.refined!.ranges].sort() };
  }

  try {
    await fc.assert(
      fc.asyncProperty(rows, async (given) => {
        const sorted = [...given].sort((a, b) => Buffer.compare(bytesOf(a), bytesOf(b)));
        const [one, other] = [await chunkOf(given), await chunkOf(sorted)];
        expect(one).toEqual(other);
        expect(one.order).toEqual(sorted.map(({ customer, id }) => [customer, id]));
        const best = new Map<string, number>();
        for (const row of given)
          best.set(String(bytesOf(row)), Math.max(row.rev, best.get(String(bytesOf(row))) ?? 0));
        const all = one.made.all as [[string, string, string, bigint, bigint][], unknown[]];
        expect(all[0].map(([tenant, id, , , version]) => [`${tenant}\n${id}`, Number(version)])).toEqual(
          [...best].sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
        );
        const even = all[0].filter(([, , , amount]) => amount % 2n === 0n);
        const bare = (found: unknown) => (found as unknown[][]).map((row) => row.slice(0, -1));
        const [some, gone] = one.made.some as [unknown, unknown[]];
        expect(bare(some)).toEqual(bare(even));
        expect(gone.length).toBe(best.size - even.length);
        expect(one.made.backwards).toEqual(one.made.all);
      }),
      { numRuns: 8 },
    );
  } finally {
    looker.closeSync();
    duck.close();
    rmSync(folder, { recursive: true });
  }
});
