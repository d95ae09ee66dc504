import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DuckDBInstance } from "@duckdb/node-api";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { engineErrorOf, isDataError, isEngineGone, isMemoryError } from "./engine-error.js";

/** What the engine says comes from the engine: its words change with its releases. */
describe.each([false, true])("the engine's errors, errors_as_json %s", (json) => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "tributary-engine-"));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  async function errorsOf(...statements: string[]) {
    const instance = await DuckDBInstance.create(join(folder, "engine.db"), { memory_limit: "50MiB" });
    const connection = await instance.connect();
    await connection.run(`SET errors_as_json=${json}; CREATE OR REPLACE TABLE t AS SELECT 1 AS i`);
    const errors = [];
    for (const sql of statements) {
      const failed = await connection.run(sql).then(
        () => undefined,
        (error: unknown) => error,
      );
      expect(failed, sql).toBeInstanceOf(Error);
      errors.push(engineErrorOf(failed)!);
    }
    connection.closeSync();
    instance.closeSync();
    return errors;
  }

  test("of values, of memory and of the whole engine are told apart by their types", async () => {
    const [value, memory] = await errorsOf(
      "SELECT CAST('x' AS INTEGER)",
      "SELECT list(repeat('x', 1000) || i) FROM range(1000000) t(i)",
    );
    expect(value).toMatchObject({ type: "Conversion" });
    expect([isDataError(value!), isMemoryError(value!), isEngineGone(value!)]).toEqual([true, false, false]);
    expect([isDataError(memory!), isMemoryError(memory!), isEngineGone(memory!)]).toEqual([
      false,
      true,
      false,
    ]);
  });

  test("an engine that is gone says so, at once and ever after", async () => {
    const gone = await errorsOf(
      "PRAGMA debug_checkpoint_abort='before_truncate'; CHECKPOINT",
      "SELECT 1",
      "SELECT 2",
    );
    expect(gone.map(isEngineGone)).toEqual([true, true, true]);
  });

  test("kind and place are those of errors_as_json", async () => {
    const [error] = await errorsOf("SELECT j FROM t");
    expect(error).toMatchObject(
      json ? { type: "Binder", subtype: "COLUMN_NOT_FOUND", position: 7 } : { type: "Binder" },
    );
  });
});

test("what is no error of the engine is none", () => {
  expect(engineErrorOf(new Error("some words"))).toBeUndefined();
  expect(engineErrorOf(new Error('a {"exception_type" that breaks off'))).toBeUndefined();
  expect(engineErrorOf("IO Error: not thrown by anything")).toBeUndefined();
});
