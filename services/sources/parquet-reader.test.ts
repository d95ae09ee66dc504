import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readAll, unitOf } from "../../test/support/sources.js";
import { Duck, rowsOf } from "../base/duckdb.js";

const folder = mkdtempSync(join(tmpdir(), "parquet-"));
const at = (name: string) => join(folder, name);
let duck: Duck;
const copy = (sql: string, name: string, options = "") =>
  duck.with((connection) => connection.run(`COPY (${sql}) TO '${at(name)}' (FORMAT parquet${options})`));
beforeAll(async () => {
  duck = await Duck.create({ memoryBytes: 512 * 1024 * 1024 });
});
afterAll(() => {
  duck.close();
  rmSync(folder, { recursive: true, force: true });
});

const ROWS = 100_000;
const many = (name: string) =>
  copy(
    `SELECT range AS id, md5(range::VARCHAR) AS text, [range, NULL] AS list FROM range(${ROWS})`,
    name,
    ", ROW_GROUP_SIZE 10000",
  );

describe("a Parquet file", () => {
  it("is its rows, numbered, in batches of whole row groups where these are small", async () => {
    await many("many.parquet");
    const unit = await unitOf(at("many.parquet"), { batchBytes: 2_000_000 });
    const { columns, rows, marks, rejects } = await readAll(unit);
    expect(columns).toEqual(["id", "text", "list"]);
    expect(rows.length).toBe(ROWS);
    expect(rows.every(([ordinal, id], row) => ordinal === row && id === BigInt(row))).toBe(true);
    expect(rejects).toEqual([]);
    expect(marks.length).toBeGreaterThan(2);
    expect(marks.at(-1)).toEqual({ row: ROWS });
    const middle = marks[1]!;
    const rest = await readAll(unit, middle);
    expect(rest.rows.map(([ordinal]) => ordinal)).toEqual(
      Array.from({ length: ROWS - middle.row }, (_, i) => i + middle.row),
    );
  });

  it("with row groups larger than a batch is read in parts of them", async () => {
    const { rows, marks } = await readAll(await unitOf(at("many.parquet"), { batchBytes: 100_000 }));
    expect(rows.every(([ordinal, id], row) => ordinal === row && id === BigInt(row))).toBe(true);
    expect(rows.length).toBe(ROWS);
    expect(marks.length).toBeGreaterThan(20);
  });

  it("with row groups somewhat larger than a batch is read in whole ones: parts would each unpack all of it", async () => {
    const rows = await duck.with((connection) =>
      rowsOf(
        connection,
        `SELECT sum(total_uncompressed_size) FROM parquet_metadata('${at("many.parquet")}') WHERE row_group_id = 0`,
      ),
    );
    const { marks } = await readAll(
      await unitOf(at("many.parquet"), { batchBytes: Number(rows[0]![0]) * 0.6 }),
    );
    // Of whole vectors of the engine's.
    const group = 10_240;
    expect(marks.map(({ row }) => row)).toEqual([
      ...Array.from({ length: 9 }, (_, at) => (at + 1) * group),
      ROWS,
    ]);
  });

  it("without rows has none", async () => {
    await copy("SELECT 1 AS a WHERE false", "empty.parquet");
    expect(await readAll(await unitOf(at("empty.parquet")))).toMatchObject({
      columns: ["a"],
      rows: [],
      marks: [],
    });
  });

  it.each([
    ["cut short", (path: string) => truncateSync(path, 1_000_000)],
    ["empty", (path: string) => truncateSync(path, 0)],
    ["another thing", (path: string) => writeFileSync(path, "id,text\n1,2\n")],
    [
      "damaged inside",
      (path: string) => {
        const bytes = readFileSync(path);
        bytes.fill(0xa5, 300_000, 700_000);
        writeFileSync(path, bytes);
      },
    ],
  ])("that is %s is damaged, and nothing is told of where it lies", async (_, change) => {
    await many("bad.parquet");
    change(at("bad.parquet"));
    const reading = readAll(await unitOf(at("bad.parquet")));
    await expect(reading).rejects.toMatchObject({ code: "TRB-SOURCE-DAMAGED" });
    await expect(reading).rejects.toThrow(
      /^exports\/file: it is not readable as parquet, or not to its end$/,
    );
  });

  it("that is not there cannot be read, which is no damage", async () => {
    const unit = { ...(await unitOf(at("none.parquet"))), identity: undefined };
    await expect(readAll(unit)).rejects.toMatchObject({
      code: "TRB-SOURCE-UNREADABLE",
      message: "exports/file: ENOENT",
    });
  });

  it.each(["tributary_ordinal", "Tributary_Ordinal", "file_row_number"])(
    "with a column %s is refused",
    async (name) => {
      await copy(`SELECT 1 AS ${name}`, "ordinal.parquet");
      await expect(readAll(await unitOf(at("ordinal.parquet")))).rejects.toMatchObject({
        code: "TRB-SOURCE-FORMAT",
      });
    },
  );

  it("may have columns of any name", async () => {
    await copy(`SELECT 1 AS "a""b'c", 2 AS "select", 3 AS "x=1"`, "names.parquet");
    expect(await readAll(await unitOf(at("names.parquet")))).toMatchObject({
      columns: [`a"b'c`, "select", "x=1"],
      rows: [[0, 1, 2, 3]],
    });
  });
});

describe("the engine that reads it", () => {
  it("reaches that file and no other", async () => {
    await copy("SELECT 1 AS a", "one.parquet");
    await copy("SELECT 2 AS a", "two.parquet");
    const closed = await Duck.sealed(64 * 1024 * 1024, [at("one.parquet")]);
    try {
      await closed.with(async (connection) => {
        await connection.run(`SELECT * FROM '${at("one.parquet")}'`);
        for (const sql of [
          `SELECT * FROM '${at("two.parquet")}'`,
          "SELECT * FROM read_text('/proc/self/environ')",
          `COPY (SELECT 1) TO '${at("three.parquet")}'`,
          "SELECT * FROM 'http://127.0.0.1:1/x.parquet'",
          "INSTALL httpfs",
          `SET allowed_paths=['${at("two.parquet")}']`,
          "SET memory_limit='1TB'",
        ]) {
          await expect(connection.run(sql), sql).rejects.toThrow();
        }
      });
    } finally {
      closed.close();
    }
  });
});
