import { mkdirSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { describe, expect, it, vi } from "vitest";
import { exportsFolder, LIMITS, readAll, writeFile } from "../../test/support/sources.js";
import { inspect, lend, sample } from "./inspect.js";

vi.mock("./source-process.js", () => import("../../test/support/readers-here.js"));

const { at, run, place } = exportsFolder();
const list = (path = "", format?: "csv" | "ndjson" | "delta" | "parquet") =>
  inspect(place(path), { format }, LIMITS);

describe("what a source holds", () => {
  it("is told by names, or by choice", async () => {
    for (const name of ["a.csv", "b.csv.gz", "c.CSV.zst"]) writeFile(at("exports", "csv", name), "x");
    for (const name of ["part-0", "part-1.gz"]) writeFile(at("exports", "parts", name), "{}");
    const named = await list("csv");
    expect(named).toMatchObject({ source: "exports/csv", format: "csv", bytes: 3 });
    expect(named.files.map(({ path, compression }) => [path, compression])).toEqual([
      ["csv/a.csv", "none"],
      ["csv/b.csv.gz", "gzip"],
      ["csv/c.CSV.zst", "zstd"],
    ]);
    expect(JSON.parse(JSON.stringify(named))).toEqual(named);
    await expect(list("parts")).rejects.toThrow("exports/parts/part-0: its name tells no format");
    expect((await list("parts", "ndjson")).files.map(({ compression }) => compression)).toEqual([
      "none",
      "gzip",
    ]);
  });

  it("is refused when it is nothing, of several formats, or packed Parquet", async () => {
    await expect(list("none")).rejects.toMatchObject({ code: "TRB-SOURCE-EMPTY" });
    await expect(list("")).rejects.toMatchObject({ code: "TRB-SOURCE-EMPTY" });
    writeFile(at("exports", "mixed", "a.csv"), "x");
    writeFile(at("exports", "mixed", "b.ndjson"), "{}");
    await expect(list("mixed")).rejects.toThrow(
      "exports/mixed/b.ndjson: expected one format, found ndjson beside csv",
    );
    writeFile(at("exports", "packed", "a.parquet.gz"), "x");
    await expect(list("packed")).rejects.toMatchObject({ code: "TRB-SOURCE-FORMAT" });
    await expect(list("mixed", "delta")).rejects.toThrow("expected a folder with a _delta_log");
  });
});

describe("a sample", () => {
  it("of each format has columns and rows", async () => {
    await run(
      `COPY (SELECT 1 AS id, 'x' AS text, DATE '2024-05-06' AS day) TO '${at("exports", "a.parquet")}'`,
    );
    writeFile(at("exports", "b.csv"), "id,text\n1,x\nbad\n2,y\n3,z\n");
    writeFile(at("exports", "c.ndjson"), '{"id":1,"in":{"a":[1]}}\n{\n{"id":2.5,"more":"x"}\n{"id":4}\n');
    writeFile(at("exports", "d.pb"), Buffer.from([2, 0x61, 0x62]));
    const samples = await Promise.all(
      ["a.parquet", "b.csv", "c.ndjson", "d.pb"].map(async (name) =>
        sample(place(name), await list(name), 2, LIMITS),
      ),
    );
    expect(samples.map(({ columns }) => columns.map(({ name, type }) => `${name} ${type}`))).toEqual([
      ["id INTEGER", "text VARCHAR", "day DATE"],
      ["id VARCHAR", "text VARCHAR"],
      ["id DOUBLE", 'in STRUCT("a" UBIGINT[])', "more VARCHAR"],
      ["event BLOB"],
    ]);
    expect(samples.map(({ rows }) => rows)).toEqual([
      ['{"id":1,"text":"x","day":"2024-05-06"}'],
      ['{"id":"1","text":"x"}', '{"id":"2","text":"y"}'],
      ['{"id":1,"in":{"a":[1]}}', '{"id":2.5,"more":"x"}'],
      ['{"event":"YWI="}'],
    ]);
    expect(samples.map(({ rejects }) => rejects.map(({ row, code }) => [row, code]))).toEqual([
      [],
      [[1, "TRB-ROW-COLUMNS"]],
      [[1, "TRB-ROW-JSON"]],
      [],
    ]);
  });
});

describe("a sample of what has no rows for long", () => {
  it.each([
    ["lines", "ndjson", '{"id":1}\n'],
    ["a header", "csv", "id\n1\n"],
  ])("ends before it comes to %s", async (_, format, text) => {
    const name = `late.${format}.gz`;
    writeFile(at("exports", name), gzipSync(Buffer.from(`${"\n".repeat(100_000_000)}${text}`)));
    const sampling = sample(place(name), await list(name), 2, LIMITS);
    if (format === "ndjson") expect((await sampling).rows).toEqual([]);
    else await expect(sampling).rejects.toThrow("header: expected names of columns, found none");
  });

  it("ends behind as many records that are none, however short they are", async () => {
    writeFile(at("exports", "wrong.ndjson.gz"), gzipSync(Buffer.from(`${"x\n".repeat(300_000)}{"id":1}\n`)));
    const { rows, rejects } = await sample(
      place("wrong.ndjson.gz"),
      await list("wrong.ndjson.gz"),
      2,
      LIMITS,
    );
    expect([rows, rejects.length]).toEqual([[], 20]);
  });
});

describe("columns in a path", () => {
  it("are columns of every format, and the file's own stand", async () => {
    const folders = ["tenant=a%20b", "day=__HIVE_DEFAULT_PARTITION__", "id=9"];
    mkdirSync(at("exports", ...folders), { recursive: true });
    await run(`COPY (SELECT 1 AS id, '"' AS x) TO '${at("exports", ...folders, "a.parquet")}'`);
    writeFile(at("exports", ...folders, "b.csv"), "ID,x\n1,\n");
    const wanted = ["tenant", "day"];
    for (const name of ["a.parquet", "b.csv"]) {
      const from = place([...folders, name].join("/"));
      const manifest = await inspect(from, {}, LIMITS);
      await lend(from, manifest, 0, LIMITS, undefined, async (unit) => {
        const { columns, rows } = await readAll(unit);
        expect(columns.slice(2)).toEqual(wanted);
        expect(rows[0]?.slice(-2)).toEqual(["a b", null]);
        expect(String(rows[0]?.[1])).toBe("1");
      });
    }
  });

  it("are refused when they differ in case alone", async () => {
    writeFile(at("exports", "a=1", "A=2", "x.ndjson"), "{}\n");
    const manifest = await list("a=1");
    await lend(place("a=1"), manifest, 0, LIMITS, undefined, async (unit) => {
      await expect(readAll(unit)).rejects.toMatchObject({ code: "TRB-SOURCE-FORMAT" });
    });
  });
});
