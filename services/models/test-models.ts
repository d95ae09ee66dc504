import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../base/duckdb.js";
import type { Model, ModelTest } from "./project.js";

export interface TestResult {
  readonly model: string;
  readonly column: string;
  readonly test: ModelTest["kind"];
  /** Rows that break the rule. */
  readonly failures: number;
}

/** Runs the tests of schema.yml over a model's live rows; `rows` is trusted SQL that yields them. */
export async function testModel(
  connection: DuckDBConnection,
  model: Model,
  rows: string,
): Promise<TestResult[]> {
  const results: TestResult[] = [];
  for (const test of model.tests) {
    const [[failures]] = (await rowsOf(connection, failingRows(test, rows))) as [[bigint]];
    results.push({ model: model.name, column: test.column, test: test.kind, failures: Number(failures) });
  }
  return results;
}

function failingRows({ column, kind, values }: ModelTest, rows: string): string {
  const name = identifier(column);
  switch (kind) {
    case "not_null":
      return `SELECT count(*) FROM (${rows}) WHERE ${name} IS NULL`;
    case "unique":
      // A tenant's rows are its own: uniqueness is asked within the tenant.
      return `SELECT coalesce(sum(n - 1), 0)::BIGINT FROM (SELECT count(*) AS n FROM (${rows}) WHERE ${name} IS NOT NULL GROUP BY tenant_id, ${name} HAVING count(*) > 1)`;
    case "accepted_values":
      return `SELECT count(*) FROM (${rows}) WHERE ${name} IS NOT NULL AND ${name}::VARCHAR NOT IN (${(values ?? []).map(literal).join(", ")})`;
  }
}
