import { rm } from "node:fs/promises";
import type { DuckDBConnection, DuckDBType } from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../../base/duckdb.js";
import { OPERATION_CREATED } from "../../contracts/envelope.js";
import { OPERATIONS } from "../../ingest/event-batch.js";
import { RawRows } from "../../ingest/raw-table.js";
import { type WrittenFile, writeParquet } from "../../table/data-file.js";
import type { TenantRange } from "../../table/key-ranges.js";
import { HASH, PAYLOAD, PayloadFunctions } from "./payload-functions.js";
import type { PayloadOrder, PayloadsAside } from "./payloads-aside.js";
import { POSITION_SQL, ROW, type RowEvents, type RowFault, type SourcePlace } from "./row-events.js";

/** Where a chunk stands among the events of its stream. */
export interface ChunkPlace {
  readonly entityType: string;
  readonly stream: string;
  readonly partition: string;
}

/** `key` is JSON of what a row says it is. */
type Reject = (at: SourcePlace, fault: RowFault, key: string) => void;

/** What a column of raw holds of rows that no bus has seen: nothing. */
const NOTHING: Readonly<Record<string, string>> = {
  payload_compression: "NULL::VARCHAR",
  payload_uri: "NULL::VARCHAR",
  payload_size: "NULL::BIGINT",
  payload_sha256: "NULL::BLOB",
  attributes: "MAP {}::MAP(VARCHAR, VARCHAR)",
  event_id: "NULL::VARCHAR",
};
/** Tells of the rows whose payloads lie elsewhere, where there are any. */
const LARGE = "tributary_large";
const ARRANGED = "tributary_arranged";
/** The order of files in tables: that which they are compacted into, so that they need no compaction. */
export const KEY_ORDER = "tenant_id, entity_id";

/** Rows that are mapped, as a table of the engine: what raw and models are written from. */
export class ChunkTable {
  static readonly NAME = "tributary_chunk";
  private made = false;
  /** Whether no two of the rows have the same key, as far as their order has told. */
  private distinct = false;
  /** Whether LARGE tells of rows of this chunk. */
  private hasLarge = false;
  private defined = false;
  private readonly functions: PayloadFunctions;
  private readonly url: string;
  /** Of the columns of raw, in its order. */
  private readonly columns = new RawRows().columns.map(({ name }) => name);

  constructor(
    private readonly connection: DuckDBConnection,
    /** Of any file whose rows will be added: what they are bound to is alike. */
    private readonly rows: RowEvents,
    private readonly place: ChunkPlace,
    private readonly sizes: PayloadOrder["sizes"],
    private readonly aside: PayloadsAside,
    getsOn: () => void,
  ) {
    this.url = `type.googleapis.com/${place.entityType}`;
    const { maxPayloadBytes } = sizes;
    this.functions = new PayloadFunctions(rows.encoder, Buffer.from(this.url), maxPayloadBytes, getsOn);
  }

  get payload(): readonly string[] {
    return this.rows.payload;
  }

  get encoder(): RowEvents["encoder"] {
    return this.rows.encoder;
  }

  /** Adds the rows of a relation that is of a file, and `rows` bound to it. */
  async add(relation: string, rows: RowEvents, file: number): Promise<void> {
    const sql = rows.sql(relation, file);
    if (this.made) {
      await this.connection.run(`INSERT INTO ${ChunkTable.NAME} ${sql}`);
      return;
    }
    await this.connection.run(`CREATE TEMP TABLE ${ChunkTable.NAME} AS ${sql}`);
    this.made = true;
    if (!this.defined) this.functions.register(this.connection, await this.payloadTypes());
    this.defined = true;
  }

  private async payloadTypes(): Promise<DuckDBType[]> {
    const { payload } = this.rows;
    const none = await this.connection.run(`SELECT ${payload.join(", ")} FROM ${ChunkTable.NAME} LIMIT 0`);
    return payload.map((_, at) => none.columnType(at));
  }

  async clear(): Promise<void> {
    // Of a table that is only emptied the engine keeps the memory.
    if (this.made) await this.connection.run(`DROP TABLE ${ChunkTable.NAME}`);
    this.made = false;
    this.hasLarge = false;
  }

  /**
   * Puts the rows in the order of files, which is found out first: exports mostly are in it. All that is written of the
   * table reads it from its first row to its last, so that nothing is sorted again.
   */
  private async arrange(): Promise<void> {
    const { connection } = this;
    const [[wrong, repeated]] = (await rowsOf(
      connection,
      `SELECT count(*) FILTER (last_tenant > tenant_id OR (last_tenant = tenant_id AND last_entity > entity_id)),
         count(*) FILTER (last_tenant = tenant_id AND last_entity = entity_id)
       FROM (SELECT tenant_id, entity_id, lag(tenant_id) OVER () AS last_tenant, lag(entity_id) OVER () AS last_entity
         FROM ${ChunkTable.NAME})`,
    )) as [[bigint, bigint]];
    this.distinct = wrong + repeated === 0n;
    if (wrong === 0n) return;
    await connection.run(
      `CREATE TEMP TABLE ${ARRANGED} AS SELECT * FROM ${ChunkTable.NAME} ORDER BY ${KEY_ORDER}, ${ROW.file}, ${ROW.ordinal};
       DROP TABLE ${ChunkTable.NAME};
       ALTER TABLE ${ARRANGED} RENAME TO ${ChunkTable.NAME}`,
    );
  }

  /** Takes away the file's rows from a place on that the engine knows to be no events, and tells of them. */
  async sift({ file, row }: SourcePlace, reject: (ordinal: number, fault: RowFault) => void): Promise<void> {
    if (!this.made) return;
    const [wrong] = this.payload;
    const where = `${ROW.file} = ${file} AND ${ROW.ordinal} >= ${row} AND (${ROW.fault} <> 0 OR ${wrong} IS NOT NULL)`;
    const found = await rowsOf(
      this.connection,
      `SELECT ${ROW.ordinal}, ${ROW.fault}, ${wrong} FROM ${ChunkTable.NAME} WHERE ${where}`,
    );
    if (found.length === 0) return;
    for (const [ordinal, fault, payload] of found as [bigint, number, number | null][])
      reject(Number(ordinal), this.rows.wrong(fault, payload));
    await this.connection.run(`DELETE FROM ${ChunkTable.NAME} WHERE ${where}`);
  }

  /** A raw file of the rows, those left out that turn out to be no events. Undefined when there are none. */
  async writeRaw(path: string, receivedAt: number, reject: Reject): Promise<WrittenFile | undefined> {
    const file = await this.withRaw(receivedAt, reject, async (sql) => {
      await rm(path, { force: true });
      return writeParquet(this.connection, sql, path);
    });
    return file?.rows === 0 ? undefined : file;
  }

  /**
   * Runs `use` with SQL for the rows as raw has them, those left out that turn out to be no events; again where that came
   * out meanwhile. What it resolves to last is of the rows that are left; undefined when there were none to begin with.
   */
  async withRaw<T>(
    receivedAt: number,
    reject: Reject,
    use: (sql: string) => Promise<T>,
  ): Promise<T | undefined> {
    if (!this.made) return undefined;
    await this.arrange();
    const { functions, connection } = this;
    const write = async (): Promise<T> => {
      // Ids count on behind the rows that were deleted.
      const [[most]] = (await rowsOf(
        connection,
        `SELECT coalesce(max(rowid) + 1, 0) FROM ${ChunkTable.NAME}`,
      )) as [[bigint]];
      functions.begin(Number(most));
      return use(this.rawSql(receivedAt));
    };
    let made = await write();
    if (await this.leaveRefused(reject)) made = await write();
    if (functions.large.size > 0) {
      await this.putAside();
      made = await write();
    }
    return made;
  }

  /** Takes away what the functions have found to be no events; whether there was any. */
  private async leaveRefused(reject: Reject): Promise<boolean> {
    const { connection, functions } = this;
    const { maxOffloadBytes } = this.sizes;
    const faults = new Map<number, RowFault>();
    for (const [id, refusal] of functions.refused) faults.set(id, this.rows.refused(refusal));
    for (const [id, bytes] of functions.large) {
      const reason = `payload: expected at most ${maxOffloadBytes} bytes`;
      if (bytes > maxOffloadBytes) faults.set(id, { code: "TRB-EVENT-PAYLOAD-SIZE", reason });
    }
    if (faults.size === 0) return false;
    const ids = [...faults.keys()];
    const rows = (await rowsOf(
      connection,
      `SELECT rowid, ${ROW.file}, ${ROW.ordinal}, to_json({tenant_id: tenant_id, entity_id: entity_id, version: version})::VARCHAR
      FROM ${ChunkTable.NAME} WHERE rowid IN (${ids.join(", ")}) ORDER BY 2, 3`,
    )) as [bigint, number, bigint, string][];
    for (const [id, file, row, key] of rows) reject({ file, row: Number(row) }, faults.get(Number(id))!, key);
    await this.leaveOut(ids);
    return true;
  }

  /** Payloads that are too large for a row go where they wait for the store; a table tells what stands in their place. */
  private async putAside(): Promise<void> {
    const { connection, functions, aside, url } = this;
    const of = `FROM ${ChunkTable.NAME} WHERE rowid IN (${[...functions.large.keys()].join(", ")})`;
    const rows = (await rowsOf(connection, `SELECT rowid, tenant_id ${of}`)) as [bigint, string][];
    const tenants = new Map(rows.map(([id, tenant]) => [Number(id), tenant]));
    const told: string[] = [];
    functions.takeLarge = (id, payload) => {
      const { uri, sizeBytes, sha256 } = aside.take(tenants.get(id)!, url, payload);
      told.push(`(${id}, ${literal(uri)}, ${sizeBytes}, unhex('${sha256.toString("hex")}'))`);
    };
    try {
      await connection.run(`SELECT count(${this.payloadSql()}) ${of}`);
    } finally {
      functions.takeLarge = undefined;
    }
    await connection.run(
      `CREATE OR REPLACE TEMP TABLE ${LARGE} AS
       SELECT * FROM (VALUES ${told.join(", ")}) t(large_row, large_uri, large_size, large_sha256)`,
    );
    this.hasLarge = true;
  }

  private payloadSql(): string {
    return `${PAYLOAD}(${ChunkTable.NAME}.rowid, ${this.payload.join(", ")})`;
  }

  private async leaveOut(ids: readonly number[]): Promise<void> {
    await this.connection.run(`DELETE FROM ${ChunkTable.NAME} WHERE rowid IN (${ids.join(", ")})`);
  }

  private rawSql(receivedAt: number): string {
    const { entityType, stream, partition } = this.place;
    const elsewhere = {
      payload_uri: "large_uri",
      payload_size: "large_size::BIGINT",
      payload_sha256: "large_sha256",
    };
    const values: Readonly<Record<string, string>> = {
      ...NOTHING,
      ...(this.hasLarge ? elsewhere : {}),
      tenant_id: "tenant_id",
      entity_type: literal(entityType),
      entity_id: "entity_id",
      operation: literal(OPERATIONS[OPERATION_CREATED]!),
      version: "version",
      occurred_at: "occurred_at",
      payload_type_url: literal(this.url),
      payload: this.payloadSql(),
      stream: literal(stream),
      partition: literal(partition),
      position: POSITION_SQL,
      received_at: `make_timestamptz(${receivedAt * 1000})`,
    };
    const list = this.columns.map((name) => `${values[name]!} AS ${identifier(name)}`);
    const from = `SELECT ${list.join(", ")} FROM ${ChunkTable.NAME}`;
    return this.hasLarge
      ? `${from} LEFT JOIN ${LARGE} ON large_row = ${ChunkTable.NAME}.rowid ORDER BY ${KEY_ORDER}`
      : from;
  }

  /**
   * Takes away what has lost within the chunk against a row of its own entity, once raw has it; returns how the keys
   * of the others lie.
   */
  async keepWinners(): Promise<TenantRange[]> {
    if (!this.distinct) await this.leaveLosers();
    return (await rowsOf(
      this.connection,
      `SELECT tenant_id, min(entity_id), max(entity_id) FROM ${ChunkTable.NAME} GROUP BY 1`,
    )) as [string, string, string][];
  }

  private async leaveLosers(): Promise<void> {
    const { connection } = this;
    const alike = `SELECT key FROM (SELECT hash(tenant_id, entity_id) AS key FROM ${ChunkTable.NAME}) GROUP BY key HAVING count(*) > 1`;
    const rows = (await rowsOf(
      connection,
      `SELECT rowid, tenant_id, entity_id, version, epoch_us(occurred_at) FROM ${ChunkTable.NAME}
       WHERE hash(tenant_id, entity_id) IN (${alike})`,
    )) as [bigint, string, string, bigint, bigint | null][];
    const best = new Map<string, { id: number; order: readonly bigint[] }>();
    const lost: number[] = [];
    for (const [rowid, tenant, entity, version, occurred] of rows) {
      const id = Number(rowid);
      const [low, high] = this.functions.hashOf(id);
      const hash = (BigInt(high) << 32n) | BigInt(low);
      // As design 3.1 has it, of events that are all creates; none is earlier than one that does not say when it was.
      const order = [version, hash, occurred === null ? -1n : occurred + (1n << 63n)];
      const key = `${tenant}\n${entity}`;
      const other = best.get(key);
      if (other === undefined || isGreater(order, other.order)) {
        if (other !== undefined) lost.push(other.id);
        best.set(key, { id, order });
      } else lost.push(id);
    }
    if (lost.length > 0) await this.leaveOut(lost);
  }

  /** SQL over the columns of order that a refined row has, in the order of a table's. */
  static readonly ORDER = [
    "version",
    `${OPERATION_CREATED}::TINYINT`,
    `${HASH}(rowid)`,
    "occurred_at",
  ] as const;
}

function isGreater(a: readonly bigint[], b: readonly bigint[]): boolean {
  const at = a.findIndex((value, i) => value !== b[i]);
  return at >= 0 && a[at]! > b[at]!;
}
