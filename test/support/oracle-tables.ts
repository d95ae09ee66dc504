import { createHash } from "node:crypto";
import type protobuf from "protobufjs";

/** A value as it is compared: numbers as text, times as microseconds since the epoch, maps as pairs sorted by key. */
export type Canonical = null | boolean | string | readonly string[] | readonly (readonly [string, string])[];
/** Columns by name, in the model's order. */
export type Row = Readonly<Record<string, Canonical>>;

type Kind = "text" | "int" | "double" | "bool" | "time" | "list" | "map";

interface ColumnRule {
  readonly kind: Kind;
  /** '' becomes NULL, as nullif(…, '') does. */
  readonly emptyIsNull?: boolean;
  /** Cut from an enum value's name, as replace(…, prefix, '') does. */
  readonly enumPrefix?: string;
  /** NULL where the field is absent; without it an absent field has its type's default. */
  readonly optional?: boolean;
}

interface TableRule {
  readonly entityType: string;
  readonly columns: Readonly<Record<string, ColumnRule>>;
}

const text: ColumnRule = { kind: "text" };
const textOrNull: ColumnRule = { kind: "text", emptyIsNull: true };
const int: ColumnRule = { kind: "int" };
const time: ColumnRule = { kind: "time", optional: true };
const list: ColumnRule = { kind: "list" };

/** What the shipped models yield, said a second time, by hand. */
const TABLES: Readonly<Record<string, TableRule>> = {
  "scm.commits": {
    entityType: "scm.v1.Commit",
    columns: {
      ...{ sha: text, author: text, authored_at: time, subject: text, parents: list },
      ...{ files_changed: int, insertions: int, deletions: int },
    },
  },
  "scm.files": {
    entityType: "scm.v1.File",
    columns: {
      ...{ path: text, directory: text, extension: text, last_commit_sha: text, last_author: text },
      ...{ created_at: time, modified_at: time, change_count: int, lines_added: int, lines_deleted: int },
    },
  },
  "tracker.issues": {
    entityType: "tracker.v1.Issue",
    columns: {
      ...{ key: text, project_key: text, summary: text, description: text, type: text, status: text },
      status_category: { kind: "text", enumPrefix: "STATUS_CATEGORY_" },
      priority: { kind: "text", enumPrefix: "PRIORITY_" },
      ...{ assignee: textOrNull, reporter: text, labels: list, components: list, fix_versions: list },
      parent_key: textOrNull,
      original_estimate_seconds: { kind: "int", optional: true },
      remaining_estimate_seconds: { kind: "int", optional: true },
      time_spent_seconds: int,
      story_points: { kind: "double", optional: true },
      ...{ created_at: time, updated_at: time, resolved_at: time, resolution: textOrNull, due_at: time },
      custom_fields: { kind: "map" },
      ...{ comment_count: int, watcher_count: int, vote_count: int },
    },
  },
  "tracker.projects": {
    entityType: "tracker.v1.Project",
    columns: {
      ...{ key: text, name: text, description: text, lead: text, category: textOrNull },
      archived: { kind: "bool" },
      ...{ created_at: time, updated_at: time, archived_at: time },
    },
  },
};

export type TableName = "scm.commits" | "scm.files" | "tracker.issues" | "tracker.projects";
export const TABLE_NAMES = Object.keys(TABLES) as TableName[];
export const entityTypeOf = (table: TableName): string => TABLES[table]!.entityType;

/** tenant_id, entity_id and the model's columns, in order. */
export const columnsOf = (table: TableName): readonly string[] => [
  "tenant_id",
  "entity_id",
  ...Object.keys(TABLES[table]!.columns),
];

/** The row that the model makes of a decoded payload. */
export function expectedRow(
  table: TableName,
  tenantId: string,
  entityId: string,
  payload: protobuf.Message<object>,
): Row {
  const row: Record<string, Canonical> = { tenant_id: tenantId, entity_id: entityId };
  const fields = payload as unknown as Readonly<Record<string, unknown>>;
  for (const [name, rule] of Object.entries(TABLES[table]!.columns)) {
    const present = Object.hasOwn(payload, name);
    let value: unknown = rule.optional && !present ? null : fields[name];
    if (rule.enumPrefix !== undefined) {
      const type = payload.$type.fields[name]!.resolvedType as protobuf.Enum;
      value = (type.valuesById[value as number] ?? String(value)).replaceAll(rule.enumPrefix, "");
    }
    if (rule.emptyIsNull && value === "") value = null;
    row[name] = canonical(rule.kind, value);
  }
  return row;
}

/**
 * A row as some reader gave it: the query API's JSON, DuckDB's values, a Parquet reader's. Columns that the model does
 * not have are left out; one that is missing is told.
 */
export function actualRow(table: TableName, record: Readonly<Record<string, unknown>>): Row {
  const row: Record<string, Canonical> = {};
  for (const name of columnsOf(table)) {
    if (!Object.hasOwn(record, name)) throw new Error(`${table}: the row read has no column "${name}"`);
    row[name] = canonical(TABLES[table]!.columns[name]?.kind ?? "text", record[name]);
  }
  return row;
}

/** The rows of an answer that has its columns apart. */
export const recordsOf = (
  columns: readonly string[],
  rows: readonly (readonly unknown[])[],
): Record<string, unknown>[] =>
  rows.map((row) => Object.fromEntries(columns.map((name, at) => [name, row[at]])));

/** SHA-256 over all columns of the rows, sorted by tenant and entity id. */
export function digestOf(rows: Iterable<Row>): string {
  const sha = createHash("sha256");
  for (const row of sorted(rows)) sha.update(`${JSON.stringify(Object.values(row))}\n`);
  return sha.digest("hex");
}

export function sorted(rows: Iterable<Row>): Row[] {
  const keyed = [...rows].map((row) => [`${String(row.tenant_id)}\0${String(row.entity_id)}`, row] as const);
  return keyed.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map(([, row]) => row);
}

function canonical(kind: Kind, value: unknown): Canonical {
  if (value === null || value === undefined) return null;
  if (kind === "text") return String(value);
  if (kind === "int") return BigInt(String(value)).toString();
  if (kind === "double") return String(Number(value));
  if (kind === "bool") return typeof value === "boolean" ? value : String(value) === "true";
  if (kind === "time") return micros(value).toString();
  if (kind === "list") return (listItems(value) as unknown[]).map(String);
  return mapPairs(value).sort(([a], [b]) => (a < b ? -1 : 1));
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null;

function listItems(value: unknown): unknown {
  return isRecord(value) && "items" in value ? value.items : value;
}

function mapPairs(value: unknown): [string, string][] {
  if (value instanceof Map) return [...value].map(([key, item]) => [String(key), String(item)]);
  const entries = isRecord(value) && Array.isArray(value.entries) ? value.entries : value;
  if (!Array.isArray(entries)) {
    return Object.entries(entries as object).map(([key, item]) => [key, String(item)]);
  }
  return entries.map((entry: unknown) =>
    Array.isArray(entry)
      ? [String(entry[0]), String(entry[1])]
      : [String((entry as { key: unknown }).key), String((entry as { value: unknown }).value)],
  );
}

const MILLION = 1_000_000n;
const ISO = /^(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d(?::?\d\d)?)?$/;

/** Microseconds since the epoch, rounded down. */
function micros(value: unknown): bigint {
  if (typeof value === "bigint") return value;
  if (value instanceof Date) return BigInt(value.getTime()) * 1000n;
  if (isRecord(value) && "micros" in value) return BigInt(String(value.micros));
  if (isRecord(value)) {
    // A Timestamp as protobufjs decodes it: absent fields are its defaults.
    const nanos = Number(value.nanos ?? 0);
    return BigInt(String(value.seconds ?? 0)) * MILLION + BigInt(Math.floor(nanos / 1000));
  }
  const parts = ISO.exec(String(value));
  if (!parts) throw new Error(`not a time: ${String(value)}`);
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map(Number) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  date.setUTCHours(hour, minute, second);
  const zone = parts[8] ?? "Z";
  const offset =
    zone === "Z" ? 0 : Number(zone.slice(1, 3)) * 60 + Number(zone.slice(3).replace(":", "") || 0);
  const fraction = BigInt((parts[7] ?? "").padEnd(6, "0").slice(0, 6));
  const minutes = zone.startsWith("-") ? offset : -offset;
  return BigInt(date.getTime() + minutes * 60_000) * 1000n + fraction;
}
