import { randomUUID } from "node:crypto";
import { mkdirSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { fileStore } from "../../test/support/lake.js";
import { exportsFolder, LIMITS, readAll, writeFile } from "../../test/support/sources.js";
import { TableWriter } from "../../test/support/table-writers.js";
import { Duck } from "../base/duckdb.js";
import { neededOf, readDeltaLog } from "./delta-log.js";
import type { Format } from "./formats.js";
import { inspect, lend, sample } from "./inspect.js";
import { listSource, type ReadLog } from "./manifest.js";

vi.mock("./source-process.js", () => import("../../test/support/readers-here.js"));

const { at, run, place, engine } = exportsFolder();
/** In this process, which is quicker. */
const readLog: ReadLog = async (shown, log) => {
  const closed = await Duck.sealed(64 * 1024 * 1024, [...log.values()]);
  return readDeltaLog(shown, log, closed).finally(() => closed.close());
};
const here = () => place("t");
const list = (format?: Format) => listSource(here(), { format }, readLog);

describe("a Delta table", () => {
  const types: Readonly<Record<string, string>> = { id: "long", day: "date", text: "string" };
  const schemaOf = (names: readonly string[]) =>
    JSON.stringify({
      type: "struct",
      fields: names.map((name) => ({ name, type: types[name], nullable: true, metadata: {} })),
    });
  const protocol = { protocol: { minReaderVersion: 1, minWriterVersion: 2 } };
  const metaData = (names: readonly string[], configuration = {}) => ({
    metaData: {
      id: randomUUID(),
      format: { provider: "parquet", options: {} },
      schemaString: schemaOf(names),
      partitionColumns: ["day"],
      configuration,
      createdTime: 1,
    },
  });
  const commit = (version: number, ...actions: readonly object[]) =>
    writeFile(
      at("exports", "t", "_delta_log", `${String(version).padStart(20, "0")}.json`),
      actions.map((action) => JSON.stringify(action)).join("\n"),
    );
  const add = async (name: string, day: string | null, sql: string) => {
    const path = at("exports", "t", name);
    mkdirSync(join(path, ".."), { recursive: true });
    await run(`COPY (${sql}) TO '${path}' (FORMAT parquet)`);
    return {
      add: {
        path: encodeURIComponent(name).replaceAll("%2F", "/"),
        partitionValues: { day },
        size: statSync(path).size,
        modificationTime: 1,
        dataChange: true,
      },
    };
  };
  const rowsOfTable = async () => {
    const manifest = await list();
    const files = await Promise.all(
      manifest.files.map((_, index) =>
        lend(here(), manifest, index, LIMITS, undefined, (unit) => readAll(unit)),
      ),
    );
    return {
      manifest,
      columns: files[0]?.columns,
      rows: files.flatMap(({ rows }) => rows.map((row) => row.map(String))),
    };
  };
  const three = async () => {
    commit(
      0,
      protocol,
      metaData(["id", "day"]),
      await add("day=a b/1.parquet", "2024-05-06", "SELECT 1 AS id UNION ALL SELECT 2"),
    );
    const second = await add("2.parquet", null, "SELECT 3 AS id, 'x' AS text");
    commit(1, metaData(["id", "day", "text"]), second, await add("gone.parquet", null, "SELECT 9 AS id"));
    commit(2, { remove: { path: "gone.parquet", deletionTimestamp: 1, dataChange: true } });
  };

  it("is the rows of its newest version, with values of partitions and NULL in columns that came later", async () => {
    await three();
    const { manifest, columns, rows } = await rowsOfTable();
    expect(manifest).toMatchObject({ format: "delta", delta: { version: 2 } });
    expect(manifest.files.map(({ path }) => path)).toEqual(["t/2.parquet", "t/day=a b/1.parquet"]);
    expect(rows).toEqual([
      ["0", "3", "null", "x"],
      ["0", "1", "2024-05-06", "null"],
      ["1", "2", "2024-05-06", "null"],
    ]);
    expect(columns).toEqual(["id", "day", "text"]);
  });

  it("is read where it may be killed, too", async () => {
    await three();
    const manifest = await inspect(here(), {}, LIMITS);
    expect(manifest).toEqual(await list());
    expect(await sample(here(), manifest, 5, LIMITS, { index: 1 })).toMatchObject({
      columns: [{ name: "id", type: "BIGINT" }, { name: "day" }, { name: "text" }],
      rows: ['{"id":1,"day":"2024-05-06","text":null}', '{"id":2,"day":"2024-05-06","text":null}'],
    });
  });

  it("is not read as Parquet: some of its files are gone from it", async () => {
    await three();
    await expect(list("parquet")).rejects.toThrow("exports/t: it is a Delta table");
  });

  it.each([
    [
      "a reader feature",
      [
        {
          protocol: {
            minReaderVersion: 3,
            minWriterVersion: 7,
            readerFeatures: ["typeWidening"],
            writerFeatures: [],
          },
        },
      ],
    ],
    ["a reader version", [{ protocol: { minReaderVersion: 4, minWriterVersion: 7 } }]],
    [
      "column mapping",
      [
        { protocol: { minReaderVersion: 2, minWriterVersion: 5 } },
        metaData(["id", "day"], { "delta.columnMapping.mode": "name" }),
      ],
    ],
  ])("with %s that is not known is refused", async (_, actions) => {
    await three();
    commit(3, ...actions);
    await expect(list()).rejects.toMatchObject({ code: "TRB-SOURCE-FORMAT" });
  });

  it.each([
    [
      "a commit is missing",
      () =>
        renameSync(at("exports", "t", "_delta_log", "00000000000000000001.json"), at("exports", "t", "x")),
    ],
    ["a file is missing", () => rmSync(at("exports", "t", "2.parquet"))],
    ["a file has another size", () => writeFileSync(at("exports", "t", "2.parquet"), "x", { flag: "a" })],
    ["a commit is no JSON", () => commit(3, "x" as unknown as object)],
    [
      "a file is said to lie elsewhere",
      () =>
        commit(3, {
          add: {
            path: "../secret.parquet",
            partitionValues: { day: null },
            size: 1,
            modificationTime: 1,
            dataChange: true,
          },
        }),
    ],
  ])("of which %s is damaged", async (_, change) => {
    await three();
    change();
    await expect(list()).rejects.toMatchObject({ code: "TRB-SOURCE-DAMAGED" });
  });

  it("of ours is its live rows: vectors mask, tombstones are none, and the log begins with a checkpoint", async () => {
    const store = await fileStore(at("exports"));
    const writer = await TableWriter.open(store, engine(), "t", { checkpointEvery: 2 });
    const write = (id: number, version: number, operation = 2) => ({
      tenant: "acme",
      id: `e${id}`,
      version,
      operation,
      content: 1n,
    });
    const all = Array.from({ length: 300 }, (_, id) => id);
    await writer.upsert(all.map((id) => write(id, 1)));
    await writer.upsert(all.filter((id) => id % 3 === 0).map((id) => write(id, 2)));
    await writer.upsert(all.filter((id) => id % 3 === 1).map((id) => write(id, 2, 3)));
    await writer.close();
    const ours = place("lake/t");
    const manifest = await listSource(ours, {}, readLog);
    expect(manifest.files.some(({ delta }) => delta?.vector !== undefined)).toBe(true);
    const found: string[] = [];
    for (const index of manifest.files.keys()) {
      await lend(ours, manifest, index, LIMITS, undefined, async (unit) => {
        const { rows, columns } = await readAll({ ...unit, batchBytes: 1_000 });
        const [id, version] = [columns.indexOf("entity_id") + 1, columns.indexOf("_tributary_version") + 1];
        found.push(...rows.map((row) => `${row[id]}@${row[version]}`));
      });
    }
    const live = all.filter((id) => id % 3 !== 1).map((id) => `e${id}@${id % 3 === 0 ? 2 : 1}`);
    expect(found.sort()).toEqual(live.sort());
    // A name that was never needed is not asked for.
    expect(
      neededOf([
        "00000000000000000002.json",
        "00000000000000000002.checkpoint.parquet",
        "00000000000000000001.json",
      ]),
    ).toEqual(["00000000000000000002.json", "00000000000000000002.checkpoint.parquet"]);
  });

  it("below a source is not read as files", async () => {
    await three();
    const above = place();
    await expect(listSource(above, {}, readLog)).rejects.toThrow("exports/t: it is a Delta table");
    await expect(listSource(above, { format: "parquet" }, readLog)).rejects.toMatchObject({
      code: "TRB-SOURCE-FORMAT",
    });
  });
});
