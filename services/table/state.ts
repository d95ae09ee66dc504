import { TributaryError } from "../base/errors.js";
import type {
  Action,
  AddAction,
  DeletionVectorDescriptor,
  MetaDataAction,
  ProtocolAction,
  RemoveAction,
  TxnAction,
} from "./actions.js";
import { type Change, changeOf } from "./changes.js";
import { locateVector } from "./deletion-vector.js";
import { columnsOf } from "./schema.js";
import { SLOTS_TAG, slotsOfTag } from "./slot-ranges.js";
import type { Column, TableFile, TableSnapshot } from "./types.js";

/** Tag of an add whose rows are tombstones (see upsert.ts). */
export const KIND_TAG = "tributary.kind";
export const TOMBSTONES = "tombstones";
export const PARTITION_COLUMN = "tenant_partition";
export const COMMIT_TIMES = "delta.enableInCommitTimestamps";
/** Operation metric of our commits: how many actions they have. */
export const ACTIONS = "numActions";

const READER_FEATURES = new Set(["deletionVectors"]);

/** Identity of a deletion vector inside the log (Delta protocol, "Derived Fields"). */
export const vectorId = (vector: DeletionVectorDescriptor | undefined): string =>
  vector === undefined ? "" : `${vector.storageType}${vector.pathOrInlineDv}@${vector.offset ?? ""}`;

/** A table's log replayed up to `version`: what "Action Reconciliation" of the protocol leaves. No I/O. */
export class TableState {
  version = -1;
  /** Version that last changed schema, properties or protocol. */
  metaDataVersion = -1;
  /** As of TableSnapshot. */
  private replacedAt = -1;
  protocol: ProtocolAction | undefined;
  metaData: MetaDataAction | undefined;
  /** In-commit timestamp of the newest commit that has one, in ms since the epoch. */
  time = 0;
  readonly files = new Map<string, TableFile>();
  /**
   * Data files that are gone, for as long as readers may need them. A vector that was replaced is not among them: its
   * data file is live, and whoever clears vectors away learns from the commits when they were replaced.
   */
  readonly removed = new Map<string, RemoveAction>();
  readonly domains = new Map<string, string>();
  readonly txns = new Map<string, TxnAction>();
  /** Live files whose adds do not tell how many rows they have, as other writers may leave it. */
  readonly uncounted = new Set<string>();
  private columns: readonly Column[] = [];
  private cached: TableSnapshot | undefined;
  private trimAt = 1024;

  /**
   * Takes in a commit, or nothing of it. Within one commit a remove and an add of one path are an update of its
   * vector, in whatever order they stand. Returns what has changed. Errors: TRB-TABLE-CORRUPT,
   * TRB-TABLE-UNSUPPORTED.
   */
  apply(version: number, actions: readonly Action[]): Change {
    const checked = this.checked(version, actions, true);
    this.take(version, checked);
    const change = changeOf({
      version,
      operation: actions.find((action) => action.commitInfo !== undefined)?.commitInfo?.operation,
      redefined: checked.metaData !== undefined,
      adds: checked.adds,
      removes: checked.removes.map(({ path }) => path),
    });
    if (change.replaced) this.replacedAt = version;
    return change;
  }

  /** Takes in the actions of a log checkpoint, as `apply`. */
  load(version: number, actions: readonly Action[]): void {
    this.take(version, this.checked(version, actions, false));
  }

  /** All that can be wrong with the actions shows here, before anything is changed. */
  private checked(version: number, actions: readonly Action[], isCommit: boolean): Checked {
    try {
      const protocol = actions.findLast((action) => action.protocol !== undefined)?.protocol;
      const metaData = actions.findLast((action) => action.metaData !== undefined)?.metaData;
      const unknown = (protocol?.readerFeatures ?? []).filter((feature) => !READER_FEATURES.has(feature));
      if (unknown.length > 0) {
        throw new TributaryError(
          "TRB-TABLE-UNSUPPORTED",
          `reader features ${unknown.join(", ")} are not known`,
        );
      }
      if ((protocol ?? this.protocol) === undefined || (metaData ?? this.metaData) === undefined) {
        throw corrupt(version, "the log has no protocol or metaData before it");
      }
      const time = actions[0]?.commitInfo?.inCommitTimestamp;
      const { configuration, id } = (metaData ?? this.metaData)!;
      // Whoever has not opened the table since its log was set aside commits to the one that it knew.
      const tableId = actions[0]?.commitInfo?.tableId;
      if (tableId !== undefined && tableId !== id) {
        throw corrupt(version, "it is of another table, whose log was set aside");
      }
      if (isCommit && configuration[COMMIT_TIMES] === "true" && time === undefined) {
        throw corrupt(version, "its commitInfo is missing; it is torn");
      }
      const wanted = actions[0]?.commitInfo?.operationMetrics?.[ACTIONS];
      if (isCommit && wanted !== undefined && wanted !== String(actions.length)) {
        throw corrupt(version, `it has ${actions.length} of ${wanted} actions; it is torn`);
      }
      return {
        actions,
        protocol,
        metaData,
        time,
        columns: metaData === undefined ? this.columns : columnsOf(metaData.schemaString),
        adds: actions.flatMap(({ add }) => (add === undefined ? [] : [fileOf(add)])),
        removes: actions.flatMap(({ remove }) =>
          remove === undefined ? [] : [{ path: decodeURIComponent(remove.path), remove }],
        ),
      };
    } catch (error) {
      if (error instanceof TributaryError) throw error;
      throw corrupt(version, "an action is not what it should be", error);
    }
  }

  private take(version: number, checked: Checked): void {
    const { adds, removes } = checked;
    for (const { path, remove } of removes) {
      if (vectorId(this.files.get(path)?.add.deletionVector) === vectorId(remove.deletionVector)) {
        this.files.delete(path);
        this.uncounted.delete(path);
      }
    }
    for (const file of adds) {
      this.files.set(file.path, file);
      this.removed.delete(file.path);
      if (Number.isNaN(file.rows)) this.uncounted.add(file.path);
      else this.uncounted.delete(file.path);
    }
    for (const { path, remove } of removes) if (!this.files.has(path)) this.removed.set(path, remove);
    for (const { domainMetadata, txn } of checked.actions) {
      if (domainMetadata?.removed === true) this.domains.delete(domainMetadata.domain);
      else if (domainMetadata !== undefined)
        this.domains.set(domainMetadata.domain, domainMetadata.configuration);
      if (txn !== undefined) this.txns.set(txn.appId, txn);
    }
    this.protocol = checked.protocol ?? this.protocol;
    this.metaData = checked.metaData ?? this.metaData;
    if (checked.protocol !== undefined || checked.metaData !== undefined) this.metaDataVersion = version;
    this.columns = checked.columns;
    this.time = Math.max(this.time, checked.time ?? 0);
    this.version = version;
    this.cached = undefined;
  }

  /** Says how many rows a file has whose add does not tell. */
  count(path: string, numRecords: number): void {
    const file = this.files.get(path)!;
    this.files.set(path, fileOf({ ...file.add, stats: JSON.stringify({ numRecords }) }));
    this.uncounted.delete(path);
    this.cached = undefined;
  }

  /** Paths of the files, and of their vectors, that the version or one within the retention names. */
  named(): Set<string> {
    const named = new Set<string>();
    const live = [...this.files.values()].map(({ add }) => add);
    for (const { path, deletionVector } of [...live, ...this.removed.values()]) {
      named.add(decodeURIComponent(path));
      const vectors = deletionVector === undefined ? undefined : locateVector(deletionVector);
      if (vectors !== undefined && "path" in vectors) named.add(vectors.path);
    }
    return named;
  }

  /** Forgets files removed before `time` (ms), now and then: they are of no use to readers any more. */
  trimRemoved(time: number): void {
    if (this.removed.size < this.trimAt) return;
    for (const [key, { deletionTimestamp }] of this.removed) {
      if (deletionTimestamp < time) this.removed.delete(key);
    }
    this.trimAt = Math.max(1024, this.removed.size * 2);
  }

  snapshot(): TableSnapshot {
    const { metaData } = this;
    if (metaData === undefined) throw new TributaryError("TRB-TABLE-CORRUPT", "the log has no metaData");
    this.cached ??= {
      version: this.version,
      columns: this.columns,
      partitionColumns: metaData.partitionColumns,
      properties: new Map(Object.entries(metaData.configuration)),
      files: [...this.files.values()],
      domains: new Map(this.domains),
      description: metaData.description,
      replacedAt: this.replacedAt,
    };
    return this.cached;
  }
}

interface Checked {
  readonly actions: readonly Action[];
  readonly protocol: ProtocolAction | undefined;
  readonly metaData: MetaDataAction | undefined;
  readonly time: number | undefined;
  readonly columns: readonly Column[];
  readonly adds: readonly TableFile[];
  readonly removes: readonly { readonly path: string; readonly remove: RemoveAction }[];
}

/** TRB-TABLE-CORRUPT; `details.commit` is the version that is amiss. */
export const corrupt = (commit: number, reason: string, cause?: unknown): TributaryError =>
  new TributaryError("TRB-TABLE-CORRUPT", `commit ${commit}: ${reason}`, { cause, details: { commit } });

function fileOf(add: AddAction): TableFile {
  const stats = add.stats === undefined ? {} : (JSON.parse(add.stats) as Partial<Stats>);
  return {
    path: decodeURIComponent(add.path),
    partition: add.partitionValues[PARTITION_COLUMN] ?? undefined,
    bytes: add.size,
    rows: stats.numRecords ?? Number.NaN,
    maskedRows: add.deletionVector?.cardinality ?? 0,
    tombstones: add.tags?.[KIND_TAG] === TOMBSTONES,
    slots: slotsOfTag(add.tags?.[SLOTS_TAG]),
    min: texts(stats.minValues),
    max: texts(stats.maxValues),
    add,
  };
}

/** JavaScript would round bounds that are 64-bit integers, which must not be taken for bounds any more. */
const texts = (bounds: Readonly<Record<string, unknown>> = {}): Record<string, string> =>
  Object.fromEntries(
    Object.entries(bounds).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
  );

export interface Stats {
  readonly numRecords: number;
  /** False once rows are masked: the bounds still bound, but no row needs to stand on them. */
  readonly tightBounds: boolean;
  readonly minValues?: Readonly<Record<string, unknown>>;
  readonly maxValues?: Readonly<Record<string, unknown>>;
}
