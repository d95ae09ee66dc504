import { rm } from "node:fs/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../../base/duckdb.js";
import type { WrittenFile } from "../../table/data-file.js";
import { KEY_COLUMNS, ORDER_COLUMNS } from "../../table/upsert.js";
import type { ChunkModel, ModelChunk } from "./chunk-protocol.js";
import { ChunkTable, KEY_ORDER } from "./chunk-table.js";

/** As much as a row of a refined table may take; see refine.ts. */
const MAX_ROW_BYTES = 64 * 1024 * 1024;

/** Writes what a model has made, with keys and columns of order: rows with its `columns`, or what it does not show. */
export type WriteModel = (
  connection: DuckDBConnection,
  sql: string,
  path: string,
  columns: ChunkModel["columns"],
  shown: boolean,
) => Promise<WrittenFile>;

/**
 * Models over the rows of a chunk, from the columns that its payloads are encoded from. What of a payload only its bytes
 * tell is not there: a model that reads such a field is none of these.
 */
export class ChunkModels {
  /** Names of the models whose rows do not stand beside those that they are made of. */
  private readonly scattered = new Set<string>();

  private constructor(
    private readonly connection: DuckDBConnection,
    private readonly models: readonly ChunkModel[],
    private readonly writeFile: WriteModel,
  ) {}

  /** Of a table that has its columns. */
  static async bind(
    connection: DuckDBConnection,
    entityType: string,
    table: ChunkTable,
    models: readonly ChunkModel[],
    write: WriteModel,
  ): Promise<ChunkModels> {
    const fields = [...table.encoder.decoded(table.payload)].flatMap(([name, { sql }]) =>
      sql === undefined ? [] : [`${identifier(name)} := ${sql}`],
    );
    const payload = fields.length === 0 ? "NULL" : `struct_pack(${fields.join(", ")})`;
    await connection.run(
      `CREATE OR REPLACE TEMP VIEW ${identifier(entityType)} AS
       SELECT tenant_id, entity_id, 'CREATED' AS operation, version, occurred_at, ${payload} AS payload
       FROM ${ChunkTable.NAME}`,
    );
    const fit: ChunkModel[] = [];
    for (const model of models) if (await gives(connection, model)) fit.push(model);
    return new ChunkModels(connection, fit, write);
  }

  /** What each makes of the table's rows, which have different keys. A model that fails is left out. */
  async write(): Promise<ModelChunk[]> {
    const made: ModelChunk[] = [];
    for (const model of this.models) {
      const chunk = await this.writeOne(model).catch(() => undefined);
      if (chunk !== undefined) made.push(chunk);
    }
    return made;
  }

  /**
   * A model maps row by row, so that what it makes of the table stands beside the table's own keys, unless it leaves
   * rows out or orders them itself. Whether it does is looked at in each row; a join finds them then.
   */
  private async writeRows(model: ChunkModel): Promise<WrittenFile> {
    const { connection, scattered } = this;
    const { name, sql, columns, out } = model;
    const own = columns.map((column) => `m.${identifier(column.name)}`);
    const places = ORDER_COLUMNS.map((column) => `k.${column}`);
    const select = `SELECT ${[...own, ...places].join(", ")} FROM (\n${sql}\n) m`;
    const alike = "m.entity_id = k.entity_id AND m.tenant_id = k.tenant_id";
    const fits = `CASE WHEN ${sizeOf(columns)} > ${MAX_ROW_BYTES} THEN error('large') ELSE true END`;
    if (!scattered.has(name)) {
      const beside = `CASE WHEN ${alike} THEN true ELSE error('scattered') END`;
      const sql = `${select} POSITIONAL JOIN ${KEYS} k WHERE ${beside} AND ${fits}`;
      const written = await this.writeFile(connection, sql, out, columns, true).catch(() => undefined);
      if (written !== undefined) return written;
      scattered.add(name);
      await rm(out, { force: true });
    }
    const order = KEY_ORDER.split(", ").map((key) => `m.${key}`);
    return this.writeFile(
      connection,
      `${select} JOIN ${KEYS} k ON ${alike} WHERE ${fits} ORDER BY ${order}`,
      out,
      columns,
      true,
    );
  }

  private async writeOne(model: ChunkModel): Promise<ModelChunk> {
    const { connection } = this;
    const { name, out, tombstones, columns } = model;
    // What was not taken over stands in the way.
    for (const path of [out, tombstones]) await rm(path, { force: true });
    const rows = await this.writeRows(model);
    const [[count]] = (await rowsOf(connection, `SELECT count(*) FROM ${ChunkTable.NAME}`)) as [[bigint]];
    if (BigInt(rows.rows) === count) return { name, rows, tombstones: undefined };
    const left = await this.writeFile(
      connection,
      `SELECT ${[...KEY_COLUMNS, ...ORDER_COLUMNS].join(", ")} FROM ${KEYS}
       ANTI JOIN read_parquet(${literal(out)}, hive_partitioning=false) USING (entity_id, tenant_id)
       ORDER BY ${KEY_ORDER}`,
      tombstones,
      columns,
      false,
    );
    // What a model makes of an entity is one row or none.
    return BigInt(rows.rows + left.rows) === count
      ? { name, rows, tombstones: left }
      : Promise.reject(new Error());
  }
}

/** The keys of the table's rows, and their places in the order of writes. */
const KEYS = `(SELECT tenant_id, entity_id, ${ORDER_COLUMNS.map((column, at) => `${ChunkTable.ORDER[at]} AS ${column}`).join(", ")}
  FROM ${ChunkTable.NAME})`;

const sizeOf = (columns: ChunkModel["columns"]): string =>
  columns
    .filter(({ type }) => type === "VARCHAR" || type === "BLOB")
    .map(({ name, type }) => {
      const bytes = type === "BLOB" ? "octet_length" : "strlen";
      return `coalesce(${bytes}(m.${identifier(name)}), 0)`;
    })
    .join(" + ");

/** Whether the model makes of the view what it makes of payloads: it reads no field that is missing. */
async function gives(connection: DuckDBConnection, { sql, columns }: ChunkModel): Promise<boolean> {
  try {
    const found = await rowsOf(connection, `DESCRIBE SELECT * FROM (\n${sql}\n) m`);
    return (
      found.map(([name, type]) => `${name} ${type}`).join() ===
      columns.map((c) => `${c.name} ${c.type}`).join()
    );
  } catch {
    return false;
  }
}
