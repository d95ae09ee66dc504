import type { DescMessage } from "@bufbuild/protobuf";
import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { PayloadDecoder } from "../contracts/payload-columns.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import { invalid, lineOf, lineOfKey } from "./place.js";
import { fingerprintOf, type Model } from "./project.js";
import { checkShape } from "./shape.js";

/** A model that fits its descriptors: what it yields is known before an event comes. */
export interface BoundModel extends Model {
  /** Output columns in order, tenant_id and entity_id among them. */
  readonly columns: readonly BoundColumn[];
  /** Changes with the SQL, the payload's fields that it reads, or the way of storing rows; the table is rebuilt then. */
  readonly fingerprint: string;
}

export interface BoundColumn {
  readonly name: string;
  /** DuckDB's spelling. */
  readonly type: string;
  readonly description: string | undefined;
}

/** Part of every fingerprint; raised when stored rows change their meaning. */
const STORAGE_VERSION = "1";

/** The columns of the decoded relation beside `payload`: nothing outside the last-write-wins tuple (design 3.1). */
const ENVELOPE_COLUMNS = [
  { name: "tenant_id", type: "VARCHAR" },
  { name: "entity_id", type: "VARCHAR" },
  { name: "operation", type: "VARCHAR" },
  { name: "version", type: "BIGINT" },
  { name: "occurred_at", type: "TIMESTAMP WITH TIME ZONE" },
] as const;

/**
 * Binds a model against its descriptor.
 * Errors: TRB-MODEL-INVALID, naming the model, the column that fails and why.
 */
export async function bindModel(
  connection: DuckDBConnection,
  registry: ProtoRegistry,
  model: Model,
): Promise<BoundModel> {
  const type = registry.entityType(model.entityType);
  if (type === undefined) throw invalid(model, `source: no message ${model.entityType} in the descriptors`);
  const used = await checkShape(connection, model);
  const fields = new PayloadDecoder(type).columns;
  const shapeOf = (some: typeof fields) => some.map((c) => `${identifier(c.name)} ${c.type}`).join(", ");
  // A field that the model does not read changes none of its rows.
  const read = fields.filter(({ name }) => used?.has(name.toLowerCase()) ?? true);
  await createRelation(connection, model.entityType, shapeOf(fields));
  /** Lines before the model's first. */
  let above = 0;
  try {
    const described = await rowsOf(connection, `DESCRIBE ${model.sql}`);
    // As ingest runs it: a trailing semicolon, say, would only show there.
    above = 1;
    await connection.run(`SELECT * FROM (\n${model.sql}\n) m`);
    const columns = described.map(([name, columnType]) => ({
      name: String(name),
      type: String(columnType),
      description: model.columnDescriptions.get(String(name)),
    }));
    checkColumns(model, columns);
    return { ...model, columns, fingerprint: fingerprintOf(STORAGE_VERSION, model.sql, shapeOf(read)) };
  } catch (cause) {
    if (cause instanceof TributaryError) throw cause;
    const { message } = cause as Error;
    const line = lineOf(message) ?? lineOfKey(message, model.sql);
    throw invalid(model, message.split("\n")[0]!, line === undefined ? line : line - above, cause);
  } finally {
    await connection.run(`DROP TABLE ${identifier(model.entityType)}`);
  }
}

/** The decoded relation of an entity type, without rows; `payload` are its fields as DuckDB declares them. */
async function createRelation(
  connection: DuckDBConnection,
  entityType: string,
  payload: string,
): Promise<void> {
  const relation = [
    ...ENVELOPE_COLUMNS.map(({ name, type }) => `${name} ${type}`),
    `payload STRUCT(${payload})`,
  ];
  await connection.run(`CREATE OR REPLACE TEMP TABLE ${identifier(entityType)} (${relation.join(", ")})`);
}

/** Runs `use` where the decoded relation of a message is there, without rows. */
export async function withRelation<T>(
  connection: DuckDBConnection,
  type: DescMessage,
  use: () => Promise<T>,
): Promise<T> {
  const { columns } = new PayloadDecoder(type);
  const payload = columns.map((column) => `${identifier(column.name)} ${column.type}`).join(", ");
  await createRelation(connection, type.typeName, payload);
  try {
    return await use();
  } finally {
    await connection.run(`DROP TABLE ${identifier(type.typeName)}`);
  }
}

function checkColumns(model: Model, columns: readonly BoundColumn[]): void {
  const names = new Set<string>();
  for (const { name } of columns) {
    if (!/^[A-Za-z_][A-Za-z0-9_]{0,127}$/.test(name)) {
      throw invalid(model, `column "${name}": expected a name of letters, digits and _; give it one with AS`);
    }
    if (name.startsWith("_tributary_") || name === "tenant_partition" || name === "ord") {
      throw invalid(model, `column "${name}": the name is reserved`);
    }
    if (names.has(name.toLowerCase())) throw invalid(model, `column "${name}": stands twice`);
    names.add(name.toLowerCase());
  }
  for (const key of ["tenant_id", "entity_id"]) {
    const column = columns.find(({ name }) => name === key);
    if (column?.type !== "VARCHAR")
      throw invalid(model, `column "${key}": expected the source's, of type VARCHAR`);
  }
  for (const [name, place] of model.columnPlaces) {
    if (names.has(name.toLowerCase())) continue;
    throw new TributaryError("TRB-MODEL-INVALID", `${place}: ${model.name} has no column "${name}"`);
  }
}
