import { BLOB, type DuckDBConnection } from "@duckdb/node-api";
import { type Duck, literal, rowsOf } from "../base/duckdb.js";
import { Turns } from "../base/turns.js";
import { FixedColumn, TextColumn } from "../columns/column-writers.js";
import { Feed, type FeedColumn, type FeedSource } from "../columns/feed.js";
import { Envelope } from "../contracts/envelope.js";
import type { ObjectStore } from "../storage/object-store.js";
import { compactAppended } from "../table/compact.js";
import type { CompactionPlanner } from "../table/compaction-plan.js";
import { BOUNDED, stageFile } from "../table/data-file.js";
import type { TableSpec } from "../table/definition.js";
import { DeltaTable, ONE_HOUR, RETENTION, type TableOptions } from "../table/delta-table.js";
import { withFilesScan } from "../table/scan.js";
import { deltaTypeOf } from "../table/schema.js";
import { Staging } from "../table/staging.js";
import { COMMIT_TIMES } from "../table/state.js";
import type { TableFile, TableSnapshot } from "../table/types.js";

/**
 * Events that could not be taken in, with why and their bytes (I8). `model` tells which table misses the event; it is
 * NO_MODEL for what is no event at all and reached no raw table.
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

export const NO_MODEL = "";

let feeds = 0;
export const DEAD_LETTERS_ROOT = "dead_letters";

/** Letters as rows of the table. */
class LetterRows {
  private readonly texts = {
    model: new TextColumn(),
    code: new TextColumn(),
    reason: new TextColumn(),
    tenant: new TextColumn(),
    type: new TextColumn(),
    id: new TextColumn(),
    stream: new TextColumn(),
    partition: new TextColumn(),
    position: new TextColumn(),
  };
  private readonly version = FixedColumn.bigint();
  private readonly received = FixedColumn.timestamp();
  private readonly dead = FixedColumn.timestamp();
  private readonly event = new TextColumn(BLOB);

  readonly columns: readonly FeedColumn[] = [
    { name: "model", writer: this.texts.model, nullable: false },
    { name: "code", writer: this.texts.code, nullable: false },
    { name: "reason", writer: this.texts.reason, nullable: false },
    { name: "tenant_id", writer: this.texts.tenant, nullable: true },
    { name: "entity_type", writer: this.texts.type, nullable: true },
    { name: "entity_id", writer: this.texts.id, nullable: true },
    { name: "version", writer: this.version, nullable: true },
    { name: "stream", writer: this.texts.stream, nullable: false },
    { name: "partition", writer: this.texts.partition, nullable: false },
    { name: "position", writer: this.texts.position, nullable: false },
    { name: "received_at", writer: this.received, nullable: false },
    { name: "dead_at", writer: this.dead, nullable: false },
    { name: "event", writer: this.event, nullable: false },
  ];

  source(letters: readonly DeadLetter[]): FeedSource {
    const envelope = new Envelope();
    const now = Date.now();
    return {
      rows: letters.length,
      fill: (start, rows) => {
        for (let row = 0; row < rows; row++) this.put(row, letters[start + row]!, envelope, now);
      },
    };
  }

  private put(row: number, letter: DeadLetter, envelope: Envelope, now: number): void {
    const { texts } = this;
    texts.model.setString(row, letter.model);
    texts.code.setString(row, letter.code);
    texts.reason.setString(row, letter.reason.slice(0, MAX_REASON).toWellFormed());
    texts.stream.setString(row, letter.stream);
    texts.partition.setString(row, letter.partition);
    texts.position.setString(row, letter.position);
    this.received.setMicros(row, 0, Math.round(letter.receivedAt * 1000));
    this.dead.setMicros(row, 0, now * 1000);
    this.event.set(row, letter.event, 0, letter.event.length);
    if (envelope.read(letter.event, 0, letter.event.length, 0) !== undefined) return;
    const { bytes } = envelope;
    texts.tenant.set(row, bytes, envelope.tenantStart, envelope.tenantEnd);
    texts.type.set(row, bytes, envelope.typeStart, envelope.typeEnd);
    texts.id.set(row, bytes, envelope.idStart, envelope.idEnd);
    this.version.set64(row, envelope.versionLo, envelope.versionHi);
  }
}

const MAX_REASON = 1000;

/** By these a letter that lies there already is found without a look into every file. */
const ORDER = ["stream", "partition", "position"];

const SPEC: TableSpec = {
  columns: new LetterRows().columns.map(({ name, writer }) => ({
    name,
    type: deltaTypeOf(writer.type)!,
    nullable: true,
  })),
  partitionColumns: [],
  properties: {
    [COMMIT_TIMES]: "true",
    [BOUNDED]: ["tenant_id", "version", "received_at", "dead_at", ...ORDER].join(","),
    [RETENTION]: ONE_HOUR,
  },
  // No vectors: letters are few, so a file is written anew when some are taken away, and any reader can read it.
  protocol: {
    minReaderVersion: 1,
    minWriterVersion: 7,
    writerFeatures: ["domainMetadata", "inCommitTimestamp", "tributary.upsert"],
  },
  description: "Events that could not be taken in.",
  irreplaceable: true,
};

/** The files whose bounds take in one of the letters; all of those that have no bounds. */
export function filesThatMayHold(
  { files }: TableSnapshot,
  letters: readonly Pick<DeadLetter, "stream" | "partition" | "position">[],
): TableFile[] {
  const within = ({ min, max }: TableFile, name: "stream" | "partition" | "position", value: string) =>
    typeof min[name] !== "string" ||
    typeof max[name] !== "string" ||
    (min[name] <= value && value <= max[name]);
  return files.filter((file) =>
    letters.some(
      ({ stream, partition, position }) =>
        within(file, "stream", stream) &&
        within(file, "partition", partition) &&
        within(file, "position", position),
    ),
  );
}

export class DeadLetters {
  private readonly turns = new Turns();

  private constructor(
    readonly table: DeltaTable,
    private readonly connection: DuckDBConnection,
    private readonly rows: LetterRows,
    private readonly feed: Feed,
    private readonly planner: CompactionPlanner,
  ) {}

  static async open(
    store: ObjectStore,
    duck: Duck,
    options: TableOptions,
    planner: CompactionPlanner,
  ): Promise<DeadLetters> {
    const table = await DeltaTable.openOrCreate(store, DEAD_LETTERS_ROOT, duck, options, SPEC);
    const connection = await duck.connect();
    const rows = new LetterRows();
    const feed = Feed.register(connection, `tributary_dead_letters_${++feeds}`, rows.columns);
    return new DeadLetters(table, connection, rows, feed, planner);
  }

  /** Durable when resolved. A letter that lies there already, of the same model and position, is not added again. */
  add(letters: readonly DeadLetter[]): Promise<void> {
    return this.turns.run(() => this.append(letters));
  }

  private async append(letters: readonly DeadLetter[]): Promise<void> {
    for (;;) {
      const snapshot = await this.table.refresh();
      const known = await this.known(letters);
      const fresh = letters.filter((letter) => !known.has(keyOf(letter)));
      if (fresh.length === 0) return;
      this.feed.use(this.rows.source(fresh));
      const result = await Staging.run(this.table, async (staging) => {
        const file = await stageFile(staging, this.connection, `SELECT * FROM ${this.feed.name}()`, {});
        this.feed.clear();
        await staging.publish([file]);
        return staging.commit({
          operation: "WRITE",
          actions: [{ add: file.add }],
          expect: new Map(),
          basedOn: snapshot.version,
          // What was known must still be all there is.
          serializable: true,
        });
      });
      if (result.kind === "committed") return this.compact();
    }
  }

  /** Merges small files: each burial makes one. The letters are safe, come what may. */
  private async compact(): Promise<void> {
    const { table, connection } = this;
    try {
      while (this.planner.wants(table)) {
        const done = await this.planner.compact(table, connection, (files) =>
          compactAppended(table, connection, files, ORDER),
        );
        if (done?.kind !== "compacted") return;
      }
    } catch {
      // The next burial tries again.
    }
  }

  private async known(letters: readonly DeadLetter[]): Promise<Set<string>> {
    const { snapshot } = this.table;
    const files = filesThatMayHold(snapshot, letters);
    if (files.length === 0) return new Set();
    const positions = [...new Set(letters.map(({ position }) => literal(position)))].join(", ");
    const options = {
      columns: ["model", "stream", "partition", "position"],
      where: `position IN (${positions})`,
    };
    const rows = await withFilesScan(this.table, snapshot, files, options, (sql) =>
      rowsOf(this.connection, sql),
    );
    return new Set(
      rows.map(([model, stream, partition, position]) => [model, stream, partition, position].join("\n")),
    );
  }
}

const keyOf = ({ model, stream, partition, position }: DeadLetter): string =>
  [model, stream, partition, position].join("\n");
