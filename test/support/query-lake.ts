import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DuckDBInstance } from "@duckdb/node-api";
import { identifier, literal } from "../../services/base/duckdb.js";
import { packageRoot } from "../../services/base/paths.js";
import type { Catalog, CatalogTable } from "../../services/query/catalog.js";
import type { Column } from "../../services/table/types.js";

/**
 * Refined tables as plain Parquet files, each holding rows of several tenants side by side. Every text and every
 * number of a tenant is its own, so that a leak shows.
 */

const ids: readonly Column[] = [
  { name: "tenant_id", type: "VARCHAR" },
  { name: "entity_id", type: "VARCHAR", description: "the entity's own id" },
];
const hidden: readonly Column[] = [
  { name: "_tributary_version", type: "BIGINT" },
  { name: "_tributary_hash", type: "UBIGINT" },
  { name: "tenant_partition", type: "VARCHAR" },
];

interface Shape {
  readonly columns: readonly Column[];
  /** SQL over tenant, secret (its canary), base (its own range of numbers) and i, the row's number from 0. */
  readonly values: Readonly<Record<string, string>>;
  readonly description: string;
}

const shapes: Readonly<Record<string, Shape>> = {
  "scm.files": {
    description: "files as of their last change",
    columns: [
      { name: "path", type: "VARCHAR", description: "path from the root" },
      { name: "directory", type: "VARCHAR" },
      { name: "extension", type: "VARCHAR" },
      { name: "last_author", type: "VARCHAR" },
      { name: "change_count", type: "INTEGER" },
      { name: "lines_added", type: "BIGINT" },
      { name: "modified_at", type: "TIMESTAMP WITH TIME ZONE" },
    ],
    values: {
      path: "'src/' || secret || '/dir' || (i % 7) || '/file' || i || '.ts'",
      directory: "'src/' || secret || '/dir' || (i % 7)",
      extension: "(['ts', 'md', NULL, 'sql'])[i % 4 + 1]",
      last_author: "secret || '-author-' || (i % 5)",
      change_count: "(i * 7 % 13)::INTEGER",
      lines_added: "base + i * 31 % 977",
      modified_at: "TIMESTAMPTZ '2024-01-01 00:00:00Z' + to_hours(((base + i * 37) % 9000)::BIGINT)",
    },
  },
  "scm.commits": {
    description: "commits",
    columns: [
      { name: "sha", type: "VARCHAR" },
      { name: "author", type: "VARCHAR" },
      { name: "subject", type: "VARCHAR" },
      { name: "parents", type: "VARCHAR[]" },
      { name: "insertions", type: "INTEGER" },
      { name: "authored_at", type: "TIMESTAMP WITH TIME ZONE" },
    ],
    values: {
      sha: "md5(tenant || i)",
      author: "secret || '-author-' || (i % 5)",
      subject: "'change ' || i || ' ' || secret",
      parents: "CASE WHEN i = 0 THEN [] ELSE [md5(tenant || (i - 1))] END",
      insertions: "(i * 11 % 101)::INTEGER",
      authored_at: "TIMESTAMPTZ '2023-06-01 00:00:00Z' + to_minutes(((base + i * 53) % 90000)::BIGINT)",
    },
  },
  "tracker.issues": {
    description: "issues",
    columns: [
      { name: "key", type: "VARCHAR" },
      { name: "project", type: "VARCHAR" },
      { name: "status", type: "VARCHAR" },
      { name: "priority", type: "INTEGER" },
      { name: "assignee", type: "VARCHAR" },
      { name: "labels", type: "VARCHAR[]" },
      { name: "cost", type: "DECIMAL(12,2)" },
      { name: "custom", type: "MAP(VARCHAR, VARCHAR)" },
      { name: "resolved_at", type: "TIMESTAMP WITH TIME ZONE" },
    ],
    values: {
      key: "secret || '-' || i",
      project: "secret || '-P' || (i % 3)",
      status: "(['open', 'doing', 'done'])[i % 3 + 1]",
      priority: "(i % 4)::INTEGER",
      assignee: "CASE WHEN i % 6 = 0 THEN NULL ELSE secret || '-author-' || (i % 5) END",
      labels: "['l' || (i % 3), secret]",
      cost: "((base + i * 17) % 9973 / 100)::DECIMAL(12,2)",
      custom: "MAP {'owner': secret, 'n': i::VARCHAR}",
      resolved_at:
        "CASE WHEN i % 3 = 2 THEN TIMESTAMPTZ '2024-03-01 12:00:00Z' + to_hours((i * 5)::BIGINT) END",
    },
  },
  "tracker.projects": {
    description: "projects",
    columns: [
      { name: "name", type: "VARCHAR" },
      { name: "lead", type: "VARCHAR" },
      { name: "budget", type: "BIGINT" },
    ],
    values: {
      name: "secret || '-P' || i",
      lead: "secret || '-author-' || (i % 5)",
      budget: "base * 1000 + i",
    },
  },
};

export interface LakeTenant {
  readonly id: string;
  /** A word in all its texts. */
  readonly canary: string;
  /** Where its numbers start; far from the others'. */
  readonly base: number;
  readonly rows: number;
}

/** The tenant that asks, and those whose data it must never see. */
export const asker: LakeTenant = { id: "acme", canary: "quokka", base: 1_000, rows: 120 };
export const others: readonly LakeTenant[] = [
  { id: "globex:eu-west", canary: "zanzibarite", base: 731_000_000, rows: 300 },
  { id: "Initech.Holdings", canary: "wolframite", base: 852_000_000, rows: 90 },
  { id: "acme-2", canary: "xylophagous", base: 963_000_000, rows: 150 },
];

export interface TestLake extends Catalog {
  readonly folder: string;
  /** Grows with each `write`. */
  readonly version: number;
  /** Adds rows to all tables, in files of their own. */
  write(tenants: readonly LakeTenant[]): Promise<void>;
  close(): void;
}

/** A lake in a folder whose name is a canary too. */
export async function createLake(tenants: readonly LakeTenant[]): Promise<TestLake> {
  const folder = mkdtempSync(join(tmpdir(), "lakecanary-"));
  const instance = await DuckDBInstance.create(":memory:", { threads: "1" });
  const connection = await instance.connect();
  await connection.run("SET TimeZone='UTC'");
  const files = new Map<string, string[]>(Object.keys(shapes).map((name) => [name, []]));
  let version = 0;
  const write = async (added: readonly LakeTenant[]) => {
    version++;
    for (const [name, shape] of Object.entries(shapes)) {
      const rows = added.map(({ id, canary, base, rows: count }) => {
        const values = shape.columns.map(
          (column) => `${shape.values[column.name]} AS ${identifier(column.name)}`,
        );
        return (
          `SELECT tenant AS tenant_id, 'e' || ${version} || '-' || i AS entity_id, ${values.join(", ")}, ` +
          `base + i AS _tributary_version, hash(i) AS _tributary_hash, '~shared' AS tenant_partition ` +
          `FROM (SELECT ${literal(id)} AS tenant, ${literal(canary)} AS secret, ${base}::BIGINT AS base, i FROM range(${count}) r(i))`
        );
      });
      const path = join(folder, `${name}-${version}.parquet`);
      // Interleaved, as ingest leaves them: no file and no row group is of one tenant.
      await connection.run(
        `COPY (SELECT * FROM (${rows.join(" UNION ALL ")}) ORDER BY hash(entity_id), tenant_id) TO ${literal(path)} (FORMAT parquet)`,
      );
      files.get(name)!.push(path);
    }
  };
  await write(tenants);
  return {
    folder,
    get version() {
      return version;
    },
    write,
    tables: async () =>
      Object.entries(shapes).map(([name, shape]) => tableOf(name, shape, files.get(name)!, version)),
    states: async () => new Map(),
    close: () => {
      connection.closeSync();
      instance.closeSync();
      rmSync(folder, { recursive: true });
    },
  };
}

function tableOf(name: string, shape: Shape, files: readonly string[], version: number): CatalogTable {
  const [domain, model] = name.split(".") as [string, string];
  const paths = files.map(literal).join(", ");
  return {
    domain,
    model,
    columns: [...ids, ...shape.columns, ...hidden],
    description: shape.description,
    version: version + 4_200_000,
    freshness: async () => 12,
    withRows: (columns, _, use) =>
      use(
        `SELECT ${columns.map(identifier).join(", ")} FROM read_parquet([${paths}], hive_partitioning=false)`,
      ),
  };
}

/** Tables for tests of the gate alone: nothing can be loaded from them. */
export const gateTables: readonly CatalogTable[] = [
  ...Object.entries(shapes).map(([name, shape]) => tableOf(name, shape, [], 1)),
  tableOf("crm.projects", shapes["tracker.projects"]!, [], 1),
];

/** Words that must be in no answer to `asker`, errors included. */
export function leaks(answer: string, lake: TestLake): string[] {
  const lower = answer.toLowerCase();
  const words = [
    ...others.flatMap(({ id, canary }) => [id, canary]),
    "lakecanary",
    ".parquet",
    "/tmp",
    packageRoot,
    "_tributary_version",
    "_tributary_hash",
    "tenant_partition",
    "~shared",
    lake.folder,
  ];
  const found = words.filter((word) => lower.includes(word.toLowerCase()));
  // Their numbers: 731xxxxxx and the like, and multiples in budgets.
  for (const { base } of others) {
    const start = String(base / 1_000_000);
    if (
      new RegExp(`(?<![0-9a-f.])${start}\\d{6}(?![0-9a-f])|(?<![0-9a-f.])${start}\\d{9}(?![0-9a-f])`).test(
        lower,
      )
    ) {
      found.push(start);
    }
  }
  return found;
}
