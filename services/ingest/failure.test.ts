import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DuckDBConnection } from "@duckdb/node-api";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Duck, literal } from "../base/duckdb.js";
import { tell } from "./failure.js";

/** What the engine says comes from the engine: its words change with its releases. */
describe.each([false, true])("what is told of the engine's failures, errors_as_json %s", (json) => {
  let folder: string;
  let duck: Duck;
  let connection: DuckDBConnection;
  let whole: Buffer;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "tributary-failure-"));
    duck = await Duck.create({ memoryBytes: 50_000_000 });
    connection = await duck.connect();
    await connection.run(`SET errors_as_json=${json}`);
    const path = join(folder, "whole.parquet");
    await connection.run(
      `COPY (SELECT i, md5(i::varchar) AS s FROM range(20000) t(i)) TO ${literal(path)} (FORMAT parquet)`,
    );
    whole = readFileSync(path);
  });
  afterAll(() => {
    connection.closeSync();
    duck.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function toldOf(sql: string) {
    const error = await connection.runAndReadAll(sql).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(Error);
    return tell(error);
  }

  const damaged = (at: number) => {
    const bytes = Buffer.from(whole);
    for (let i = 0; i < 400; i++) bytes[at + i] = (i * 37) & 255;
    return bytes;
  };
  test.each<[string, () => Buffer | undefined]>([
    ["is missing", () => undefined],
    ["is empty", () => Buffer.alloc(0)],
    ["is cut off", () => whole.subarray(0, whole.length >> 1)],
    ["has damaged rows", () => damaged(whole.length >> 1)],
    ["has a damaged page header", () => damaged(0)],
  ])("a file that %s is the table's", async (what, content) => {
    const path = join(folder, `${what}.parquet`);
    const bytes = content();
    if (bytes !== undefined) writeFileSync(path, bytes);
    expect(await toldOf(`SELECT sum(i), max(s) FROM read_parquet(${literal(path)})`)).toEqual({
      code: "TRB-TABLE-CORRUPT",
      reason: "a file of the table is missing or damaged",
    });
  });

  test("memory is a setting's", async () => {
    const told = await toldOf("SELECT list(repeat('x', 1000) || i) FROM range(1000000) t(i)");
    expect(told.code).toBe("TRB-INGEST-MEMORY");
  });

  test("a value that does not fit is nobody's file", async () => {
    expect((await toldOf("SELECT strptime('x', '%Y')")).code).toBe("TRB-INTERNAL");
    expect((await toldOf("SELECT CAST('x' AS INTEGER)")).code).toBe("TRB-INTERNAL");
  });
});
