import {
  BIGINT,
  BLOB,
  blobValue,
  type DuckDBConnection,
  DuckDBTimestampTZValue,
  TIMESTAMPTZ,
  VARCHAR,
} from "@duckdb/node-api";
import { type Duck, literal, rowsOf } from "../base/duckdb.js";
import { Envelope } from "../contracts/envelope.js";
import type { ObjectStore } from "../storage/object-store.js";
import { DeltaTable, type TableOptions, type TableSpec } from "../table/delta-table.js";
import { scanSql } from "../table/scan.js";
import { deltaTypeOf } from "../table/schema.js";
import { stageFile } from "../table/stage.js";
import { versionOf } from "./event-batch.js";
import { Feed, type FeedColumn } from "./feed.js";

/**
 * Events that could not be taken in, with why and their bytes (I8). `model` tells which table misses the event; it is
 * empty for what is no event at all and reached no raw table.
 */
export interface DeadLetter {
  readonly model: string;
  readonly code: string;
  readonly reason: string;
  readonly stream: string;
  readonly partition: string;
  readonly position: string;
  readonly receivedAt: number;
  readonly event: Buffer;
}

export const DEAD_LETTERS_ROOT = "dead_letters";

const COLUMNS: readonly FeedColumn[] = [
  { name: "model", type: VARCHAR },
  { name: "code", type: VARCHAR },
  { name: "reason", type: VARCHAR },
  { name: "tenant_id", type: VARCHAR },
  { name: "entity_type", type: VARCHAR },
  { name: "entity_id", type: VARCHAR },
  { name: "version", type: BIGINT },
  { name: "stream", type: VARCHAR },
  { name: "partition", type: VARCHAR },
  { name: "position", type: VARCHAR },
  { name: "received_at", type: TIMESTAMPTZ },
  { name: "dead_at", type: TIMESTAMPTZ },
  { name: "event", type: BLOB },
];

const SPEC: TableSpec = {
  columns: COLUMNS.map(({ name, type }) => ({ name, type: deltaTypeOf(type)!, nullable: true })),
  partitionColumns: [],
  properties: { "delta.enableDeletionVectors": "true", "delta.dataSkippingStatsColumns": "tenant_id" },
  protocol: {
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: ["deletionVectors"],
    writerFeatures: ["deletionVectors", "domainMetadata", "tributary.upsert"],
  },
  description: "Events that could not be taken in.",
};

const MAX_REASON = 1000;

export class DeadLetters {
  private turn: Promise<unknown> = Promise.resolve();

  private constructor(
    readonly table: DeltaTable,
    private readonly connection: DuckDBConnection,
    private readonly feed: Feed,
  ) {}

  static async open(store: ObjectStore, duck: Duck, options: TableOptions): Promise<DeadLetters> {
    const table = await DeltaTable.openOrCreate(store, DEAD_LETTERS_ROOT, duck, options, SPEC);
    const connection = await duck.connect();
    return new DeadLetters(table, connection, Feed.register(connection, "tributary_dead_letters", COLUMNS));
  }

  /** Durable when resolved. A letter that lies there already, of the same model and position, is not added again. */
  add(letters: readonly DeadLetter[]): Promise<void> {
    const result = this.turn.then(() => this.append(letters));
    this.turn = result.catch(() => undefined);
    return result;
  }

  private async append(letters: readonly DeadLetter[]): Promise<void> {
    for (;;) {
      const snapshot = await this.table.refresh();
      const known = await this.known(letters);
      const fresh = letters.filter((letter) => !known.has(keyOf(letter)));
      if (fresh.length === 0) return;
      this.feed.use({
        rows: fresh.length,
        fill: (columns, start, rows) => {
          for (let row = 0; row < rows; row++) {
            const values = valuesOf(fresh[start + row]!);
            for (const [index, column] of columns.entries())
              if (column !== undefined) column[row] = values[index]!;
          }
        },
      });
      const file = await stageFile(this.table, this.connection, `SELECT * FROM ${this.feed.name}()`, {
        boundedColumns: ["tenant_id"],
      });
      this.feed.clear();
      await this.table.store.adopt([file]);
      const result = await this.table.commit({
        operation: "WRITE",
        actions: [{ add: file.add }],
        expect: new Map(),
        basedOn: snapshot.version,
        // What was known must still be all there is.
        serializable: true,
      });
      if (result.kind === "committed") return;
    }
  }

  private async known(letters: readonly DeadLetter[]): Promise<Set<string>> {
    const positions = [...new Set(letters.map(({ position }) => literal(position)))].join(", ");
    const sql = await scanSql(this.table, this.table.snapshot, {
      columns: ["model", "stream", "partition", "position"],
      where: `position IN (${positions})`,
    });
    const rows = await rowsOf(this.connection, sql);
    return new Set(
      rows.map(([model, stream, partition, position]) => [model, stream, partition, position].join("\n")),
    );
  }
}

const keyOf = ({ model, stream, partition, position }: DeadLetter): string =>
  [model, stream, partition, position].join("\n");

function valuesOf(letter: DeadLetter) {
  const envelope = new Envelope();
  const readable = envelope.read(letter.event, 0, letter.event.length) === undefined;
  const micros = (ms: number) => new DuckDBTimestampTZValue(BigInt(Math.round(ms * 1000)));
  return [
    letter.model,
    letter.code,
    letter.reason.slice(0, MAX_REASON),
    readable ? envelope.tenantId() : null,
    readable ? envelope.entityType() : null,
    readable ? envelope.entityId() : null,
    readable ? versionOf(envelope) : null,
    letter.stream,
    letter.partition,
    letter.position,
    micros(letter.receivedAt),
    micros(Date.now()),
    blobValue(letter.event),
  ];
}
