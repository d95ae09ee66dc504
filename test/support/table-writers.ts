import { randomUUID } from "node:crypto";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import type { DuckDBConnection } from "@duckdb/node-api";
import { type Duck, rowsOf } from "../../services/base/duckdb.js";
import { SLOTS, type SlotRange } from "../../services/base/slots.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { BulkUpserts } from "../../services/table/bulk-upsert.js";
import { writeParquet } from "../../services/table/data-file.js";
import type { TableSpec } from "../../services/table/definition.js";
import { DeltaTable, ONE_HOUR, RETENTION, type TableOptions } from "../../services/table/delta-table.js";
import { EntityKeys } from "../../services/table/entity-keys.js";
import { EntityLocator } from "../../services/table/locator.js";
import type { FileRun, MadeRuns } from "../../services/table/made-runs.js";
import {
  CONTENT_HI,
  CONTENT_LO,
  compareOrder,
  FLAGS,
  ROW,
  VERSION_HI,
  VERSION_LO,
  WORDS,
} from "../../services/table/order.js";
import type { Progress } from "../../services/table/progress.js";
import type { RowSource } from "../../services/table/row-source.js";
import { withScan } from "../../services/table/scan.js";
import { normalized, type Slots } from "../../services/table/slot-ranges.js";
import { PARTITION_COLUMN } from "../../services/table/state.js";
import { type Upsert, type UpsertResult, UpsertWriter } from "../../services/table/upsert.js";

/** Upserts into a table with several writers, each with objects of its own as a process has them; no ingest. */

export const ENTITY_TYPE = "t.v1.Thing";

/** One write; `content` settles ties and stands for the payload. */
export interface Write {
  readonly tenant: string;
  readonly id: string;
  readonly version: number;
  /** 1 created, 2 updated, 3 deleted. */
  readonly operation: number;
  readonly content: bigint;
  /** What a model made a tombstone of that was wrong. */
  readonly hidden?: boolean;
}

/** What a model would make a tombstone of. */
const isFiltered = ({ content }: Write): boolean => content % 5n === 0n;

export const SPEC: TableSpec = {
  columns: [
    { name: "tenant_id", type: "string", nullable: true },
    { name: "entity_id", type: "string", nullable: true },
    { name: "value", type: "string", nullable: true },
    { name: "_tributary_version", type: "long", nullable: true },
    { name: "_tributary_operation", type: "byte", nullable: true },
    { name: "_tributary_hash", type: "long", nullable: true },
    { name: "_tributary_occurred_at", type: "timestamp", nullable: true },
    { name: PARTITION_COLUMN, type: "string", nullable: true },
  ],
  partitionColumns: [PARTITION_COLUMN],
  properties: {
    "delta.enableDeletionVectors": "true",
    "delta.enableInCommitTimestamps": "true",
    "delta.dataSkippingStatsColumns": "tenant_id",
    [RETENTION]: ONE_HOUR,
  },
  protocol: {
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: ["deletionVectors"],
    writerFeatures: ["deletionVectors", "domainMetadata", "inCommitTimestamp", "tributary.upsert"],
  },
};

export const NOWHERE: Progress = new Map();

let relations = 0;

/** One process's writer of the table. */
export class TableWriter {
  private constructor(
    readonly table: DeltaTable,
    readonly writer: UpsertWriter,
    readonly connection: DuckDBConnection,
    private readonly keys: EntityKeys,
    private readonly relation: string,
    private readonly bulks: BulkUpserts,
  ) {}

  static async open(
    store: ObjectStore,
    duck: Duck,
    root: string,
    options: TableOptions & {
      readonly indexBytes?: number;
      readonly manyRows?: number;
      readonly madeRuns?: MadeRuns;
      readonly offerRun?: (run: FileRun) => Promise<void>;
    },
  ): Promise<TableWriter> {
    const table = await DeltaTable.openOrCreate(store, root, duck, options, SPEC);
    const keys = new EntityKeys(ENTITY_TYPE);
    const locator = new EntityLocator(
      table,
      options.indexBytes ?? 1 << 26,
      keys,
      options.madeRuns,
      options.manyRows,
    );
    const writer = new UpsertWriter(table, locator, keys);
    const bulks = new BulkUpserts(table, keys, options.offerRun, options.manyRows);
    return new TableWriter(table, writer, await duck.connect(), keys, `batch_${++relations}`, bulks);
  }

  upsert(
    writes: readonly Write[],
    more: Partial<Pick<Upsert, "from" | "to" | "slots" | "again">> = {},
  ): Promise<UpsertResult> {
    const { from = NOWHERE, to = NOWHERE, ...others } = more;
    return this.writer.upsert({
      source: this.source(writes),
      from,
      to,
      newest: undefined,
      ready: Promise.resolve(true),
      ...others,
    });
  }

  /** As `upsert`, of files that are written first. */
  async bulk(writes: readonly Write[], { from, to }: { readonly from: Progress; readonly to: Progress }) {
    const { connection, table } = this;
    const source = this.source(writes);
    const keys = await source.keys();
    const order = "_tributary_version, _tributary_operation, _tributary_hash, _tributary_occurred_at";
    const written = async (columns: string, where: string) => {
      const path = join(table.store.staging, `bulk-${randomUUID()}.parquet`);
      const sql = `SELECT ${columns} FROM ${keys} WHERE ${where} ORDER BY tenant_id, entity_id`;
      const file = await writeParquet(connection, sql, path);
      return { file, move: (localPath: string) => rename(path, localPath) };
    };
    const ranges = await rowsOf(
      connection,
      `SELECT tenant_id, min(entity_id), max(entity_id) FROM ${keys} GROUP BY 1`,
    );
    return this.bulks.add({
      rows: await written(`tenant_id, entity_id, value, ${order}`, "NOT gone"),
      tombstones: await written(`tenant_id, entity_id, ${order}`, "gone"),
      ranges: ranges as [string, string, string][],
      from,
      to,
      newest: undefined,
      fits: () => true,
    });
  }

  slotOf({ tenant, id }: Pick<Write, "tenant" | "id">): number {
    const words = new Uint32Array(WORDS);
    const [tenantBytes, idBytes] = [Buffer.from(tenant), Buffer.from(id)];
    this.keys.put(words, 0, tenantBytes, 0, tenantBytes.length, idBytes, 0, idBytes.length);
    return words[0]!;
  }

  private source(writes: readonly Write[]): RowSource {
    const winners = this.winnersOf(writes);
    const { connection, relation } = this;
    const records = new Uint32Array(winners.length * WORDS);
    for (const [ord, { record }] of winners.entries()) {
      records.set(record, ord * WORDS);
      records[ord * WORDS + ROW] = ord;
    }
    const values = winners.map(
      ({ write }, ord) =>
        `(${ord}, '${write.tenant}', '${write.id}', ${write.version}, ${write.operation}::TINYINT,
          ${BigInt.asIntN(64, write.content)}, NULL::TIMESTAMPTZ, 'v${write.version}-${write.content}',
          ${write.operation === 3 || isFiltered(write) || write.hidden === true})`,
    );
    return {
      connection,
      records,
      keys: async () => {
        await connection.run(
          `CREATE OR REPLACE TEMP TABLE ${relation} AS SELECT * FROM (VALUES ${values.join(", ")})
           t(ord, tenant_id, entity_id, _tributary_version, _tributary_operation, _tributary_hash,
             _tributary_occurred_at, value, gone)`,
        );
        return relation;
      },
      rows: async (survivors) => {
        await connection.run(
          `CREATE OR REPLACE TEMP TABLE ${relation}_rows AS
           SELECT * FROM ${relation} WHERE NOT gone AND ord IN (${survivors.join(", ")}) ORDER BY ord`,
        );
        const rows = await rowsOf(connection, `SELECT ord FROM ${relation}_rows`);
        return { relation: `${relation}_rows`, ords: rows.map(([ord]) => Number(ord)) };
      },
      release: async () => undefined,
    };
  }

  private winnersOf(writes: readonly Write[]): { write: Write; record: Uint32Array }[] {
    const best = new Map<string, { write: Write; record: Uint32Array }>();
    for (const write of writes) {
      const record = new Uint32Array(WORDS);
      const [tenant, id] = [Buffer.from(write.tenant), Buffer.from(write.id)];
      this.keys.put(record, 0, tenant, 0, tenant.length, id, 0, id.length);
      record[VERSION_LO] = write.version;
      record[VERSION_HI] = 0;
      record[CONTENT_LO] = Number(write.content & 0xffffffffn);
      record[CONTENT_HI] = Number((write.content >> 32n) & 0xffffffffn);
      record[FLAGS] = write.operation;
      const key = `${write.tenant}\n${write.id}`;
      const known = best.get(key);
      if (known === undefined || compareOrder(record, 0, known.record, 0) > 0)
        best.set(key, { write, record });
    }
    return [...best.values()];
  }

  /** What is wrong with the index, compared with one read from the table's files; empty when all is well. */
  async checkIndex(slots?: Slots): Promise<string[]> {
    await this.table.refresh();
    // Of an empty batch; it brings the index to the snapshot.
    await this.writer.locator.locate(new Uint32Array(0), this.connection, "", slots);
    await this.writer.locator.settled();
    const fresh = new EntityLocator(this.table, 1 << 28, this.keys);
    await fresh.locate(new Uint32Array(0), this.connection, "", slots);
    const known = contentsOf(this.writer.locator);
    const wanted = contentsOf(fresh);
    const wrong: string[] = [];
    for (const [key, stands] of wanted)
      if (known.get(key) !== stands) wrong.push(`${key}: ${known.get(key)} instead of ${stands}`);
    for (const key of known.keys()) if (!wanted.has(key)) wrong.push(`${key}: is not in the table`);
    return wrong;
  }

  async rows(): Promise<string[]> {
    const snapshot = await this.table.refresh();
    const columns = ["tenant_id", "entity_id", "value"];
    const rows = await withScan(this.table, snapshot, { columns }, (sql) => rowsOf(this.connection, sql));
    return rows.map((row) => row.join("|")).sort();
  }

  async close(): Promise<void> {
    await this.writer.close();
    await this.table.settled();
    this.connection.closeSync();
  }
}

function contentsOf(locator: EntityLocator): Map<string, string> {
  const contents = new Map<string, string>();
  for (const { record, path } of locator.entries()) {
    const place = path === undefined ? "tombstone" : `${path}:${record[ROW]}`;
    contents.set(record.subarray(0, 4).join("-"), `${record.subarray(4, 10).join("-")} ${place}`);
  }
  return contents;
}

/** What `TableWriter.rows` must be after a set of writes, in whatever order (decision 3). */
export function expectedRows(writes: readonly Write[]): string[] {
  const best = new Map<string, Write>();
  for (const write of writes) {
    const key = `${write.tenant}|${write.id}`;
    const known = best.get(key);
    if (known === undefined || beats(write, known)) best.set(key, write);
  }
  return [...best]
    .filter(([, write]) => write.operation !== 3 && !isFiltered(write))
    .map(([key, { version, content }]) => `${key}|v${version}-${content}`)
    .sort();
}

function beats(a: Write, b: Write): boolean {
  const rank = ({ version, operation, content }: Write) => [
    BigInt(version),
    operation === 3 ? 1n : 0n,
    content,
    BigInt(operation),
  ];
  const [x, y] = [rank(a), rank(b)];
  for (const [i, value] of x.entries()) if (value !== y[i]) return value > y[i]!;
  return false;
}

/** The claim of writer `index` of `count`. */
export const claimOf = (index: number, count: number): Slots =>
  normalized([range(index / count, (index + 1) / count)]);

const range = (from: number, to: number): SlotRange => ({
  start: Math.round(from * SLOTS),
  end: Math.round(to * SLOTS),
});
