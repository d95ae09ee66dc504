import { identifier } from "../base/duckdb.js";
import type { Column } from "../table/types.js";

/** What the query service knows of the refined tables. */
export interface Catalog {
  /** A table for each model of the project, at its newest version. */
  tables(): Promise<readonly CatalogTable[]>;
  /** Tables that are not well, by "domain.model". */
  states(): Promise<ReadonlyMap<string, TableState>>;
}

/** What a tenant is told of a table that does not go on. */
export interface TableState {
  readonly state: "quarantined" | "catching-up";
  /** ISO 8601. */
  readonly since: string;
  readonly code: string;
  readonly remedy: string;
}

/** A model's table at one version; its files, if any, may hold rows of several tenants. */
export interface CatalogTable {
  /** The schema analysts see, e.g. "scm". */
  readonly domain: string;
  readonly model: string;
  /** All columns of the table, `tenant_id` and hidden ones included. */
  readonly columns: readonly Column[];
  readonly description: string | undefined;
  readonly version: number;
  /**
   * Milliseconds for which the oldest accepted event of this tenant has waited to be in the table: what was received
   * before is in answers. 0 when none waits, null when not known.
   */
  freshness(tenant: string): Promise<number | null>;
  /**
   * Runs `use` with trusted SQL that yields the named columns of the live rows at this version: all rows of `tenant`,
   * and perhaps rows of others. The caller filters by tenant_id; `tenant` only lets the table skip files. The rows can
   * be read until `use` ends.
   */
  withRows<T>(columns: readonly string[], tenant: string, use: (sql: string) => Promise<T>): Promise<T>;
}

/** The column every refined table has, and by which a tenant's rows are told apart. */
export const TENANT_COLUMN = "tenant_id";

/** The columns an analyst sees: what the model gives and the envelope's ids, none that settle order or placement. */
export function visibleColumns(table: CatalogTable): readonly Column[] {
  return table.columns.filter(({ name }) => !name.startsWith("_tributary_") && name !== "tenant_partition");
}

/** "scm"."files" */
export const qualifiedName = (table: { readonly domain: string; readonly model: string }): string =>
  `${identifier(table.domain)}.${identifier(table.model)}`;

/** Trusted SQL that yields the named columns and no row. */
export function emptySql(table: Pick<CatalogTable, "columns">, columns: readonly string[]): string {
  const wanted = table.columns.filter(({ name }) => columns.includes(name));
  return `SELECT ${wanted.map(({ name, type }) => `NULL::${type} AS ${identifier(name)}`).join(", ")} WHERE false`;
}
