import { assert } from "../../base/errors.js";
import type { IngestContext } from "../../ingest/context.js";
import { EventBatch } from "../../ingest/event-batch.js";
import { rawColumns } from "../../ingest/raw-table.js";
import { wholeEvents } from "../../ingest/replay.js";
import { removeOf } from "../../table/actions.js";
import { BOUNDED } from "../../table/data-file.js";
import type { TableSpec } from "../../table/definition.js";
import { DeltaTable, ONE_HOUR, RETENTION } from "../../table/delta-table.js";
import { partsOf, progressOf, type Track, withoutTracks } from "../../table/progress.js";
import { withFilesScan } from "../../table/scan.js";
import { COMMIT_TIMES } from "../../table/state.js";
import type { TableFile } from "../../table/types.js";

/** Where the queue lies, and what the worker that lands it has a lease of. */
export const IMPORTS = "imports";

/** About what one append holds; whichever is reached first. */
export const PORTION = { rows: 10_000, bytes: 8 * 1024 * 1024 } as const;

/** The queue's own positions go by the stream that its rows will have in raw, and by their type. */
export const queuedAs = (stream: string, entityType: string): string => `${entityType}/${stream}`;

const SPEC: TableSpec = {
  columns: rawColumns(),
  partitionColumns: [],
  properties: {
    [COMMIT_TIMES]: "true",
    [BOUNDED]: "tenant_id,entity_type,stream,partition,position,received_at",
    [RETENTION]: ONE_HOUR,
  },
  // No vectors: a file is there until all of it has landed, and any reader can read it.
  protocol: {
    minReaderVersion: 1,
    minWriterVersion: 7,
    writerFeatures: ["domainMetadata", "inCommitTimestamp", "tributary.upsert"],
  },
  description: "Change events of bulk jobs that wait for their turn to land.",
  grows: true,
};

/** One append: events of one type, stream and partition. */
export interface Waiting {
  readonly stream: string;
  readonly partition: string;
  readonly entityType: string;
  readonly first: string;
  readonly rows: number;
  readonly bytes: number;
  /** When it was made, in ms since the epoch. */
  readonly since: number;
  readonly file: TableFile;
}

/** How much waits. */
export interface Backlog {
  readonly rows: number;
  readonly bytes: number;
  /** When the oldest of it was made, in ms since the epoch; undefined where nothing waits. */
  readonly oldest: number | undefined;
}

export const backlogOf = (waiting: readonly Waiting[]): Backlog => ({
  rows: waiting.reduce((sum, { rows }) => sum + rows, 0),
  bytes: waiting.reduce((sum, { bytes }) => sum + bytes, 0),
  oldest: waiting.reduce<number | undefined>(
    (oldest, { since }) => Math.min(oldest ?? since, since),
    undefined,
  ),
});

type Context = Pick<IngestContext, "store" | "duck" | "tableOptions">;

/**
 * Events that wait to land, appended by any number of producers with `append` (table/append.ts) along `queuedAs` their
 * stream and type: ascending positions, each append whole. A Delta table with raw's columns, of which files are removed
 * once their events are in raw.
 */
export class ImportQueue {
  private constructor(readonly table: DeltaTable) {}

  /** Undefined where nothing has ever been queued. Errors: those of opening a table. */
  static async open({ store, duck, tableOptions }: Context): Promise<ImportQueue | undefined> {
    const table = await DeltaTable.open(store, IMPORTS, duck, tableOptions);
    return table && new ImportQueue(table);
  }

  /** For producers. Errors: those of opening a table. */
  static async openOrCreate({ store, duck, tableOptions }: Context): Promise<ImportQueue> {
    return new ImportQueue(await DeltaTable.openOrCreate(store, IMPORTS, duck, tableOptions, SPEC));
  }

  /** All that waits, of each stream and type in the order of positions. Errors: TRB-STORE-FAILED, TRB-TABLE-CORRUPT. */
  async look(): Promise<readonly Waiting[]> {
    const { files } = await this.table.refresh();
    return files.map(waitingIn).sort((a, b) => (a.first < b.first ? -1 : 1));
  }

  /** Its events, in the order of positions. Errors: those of reading a table. */
  read(waiting: Waiting): Promise<EventBatch> {
    const { table } = this;
    const { entityType, stream, file } = waiting;
    return withFilesScan(table, table.snapshot, [file], {}, (sql) =>
      table.duck.with(async (connection) => {
        const batch = new EventBatch(entityType, stream);
        const rows = `SELECT * FROM (${sql}) ORDER BY position`;
        for await (const one of wholeEvents({ connection, entityType }, rows)) {
          const { event, partition, position, receivedAt } = one;
          batch.add(event, 0, event.length, partition, position, receivedAt);
        }
        return batch;
      }),
    );
  }

  /** Its events are in raw. Another worker may have said so before. */
  async landed({ file }: Waiting): Promise<void> {
    await this.remove([file], []);
  }

  /** Takes away all that waits of a stream, and where it is: who goes on with it begins where raw stands. */
  async forget(stream: string): Promise<void> {
    for (;;) {
      const snapshot = await this.table.refresh();
      const tracks = [...progressOf(snapshot).keys()].filter((track) => streamOfTrack(track) === stream);
      const files = snapshot.files.filter((file) => waitingIn(file).stream === stream);
      if (tracks.length === 0 && files.length === 0) return;
      if (await this.remove(files, tracks)) return;
    }
  }

  /** Streams that the queue knows of. */
  get streams(): ReadonlySet<string> {
    return new Set([...progressOf(this.table.snapshot).keys()].map(streamOfTrack));
  }

  private async remove(files: readonly TableFile[], tracks: readonly Track[]): Promise<boolean> {
    const { table } = this;
    const { domains, version } = table.snapshot;
    const now = Date.now();
    const forgotten = withoutTracks(tracks);
    const names = forgotten.map(({ domainMetadata }) => domainMetadata!.domain);
    const result = await table.commit({
      operation: "DELETE",
      actions: [...files.map(({ add }) => ({ remove: removeOf(add, now, true) })), ...forgotten],
      // What is appended meanwhile would be forgotten without having been seen.
      expect: new Map(names.map((name) => [name, domains.get(name)])),
      basedOn: version,
      serializable: false,
    });
    return result.kind === "committed";
  }
}

/** Of a track of the queue: what `queuedAs` was given first. No entity type has a slash in its name. */
const streamOfTrack = (track: Track): string => partsOf(track).stream.replace(/^[^/]*\//, "");

function waitingIn(file: TableFile): Waiting {
  const { stream, partition, entity_type: entityType, position: first, received_at: since } = file.min;
  const whole = file.max.stream === stream && file.max.entity_type === entityType;
  assert(
    whole && stream !== undefined && partition !== undefined && entityType !== undefined,
    "a file of the import queue is of no one stream and type",
  );
  assert(first !== undefined && since !== undefined, "a file of the import queue has no bounds");
  return {
    stream,
    partition,
    entityType,
    first,
    rows: file.rows,
    bytes: file.bytes,
    since: Date.parse(since),
    file,
  };
}
