import { TributaryError } from "../base/errors.js";
import type {
  Action,
  AddAction,
  DeletionVectorDescriptor,
  MetaDataAction,
  ProtocolAction,
  RemoveAction,
} from "./actions.js";
import { columnsOf } from "./schema.js";
import type { TableFile, TableSnapshot } from "./types.js";

/** Tag of an add whose rows are tombstones (see upsert.ts). */
export const KIND_TAG = "tributary.kind";
export const TOMBSTONES = "tombstones";
export const PARTITION_COLUMN = "tenant_partition";

const READER_FEATURES = new Set(["deletionVectors"]);

/** Identity of a deletion vector inside the log (Delta protocol, "Derived Fields"). */
export const vectorId = (vector: DeletionVectorDescriptor | undefined): string =>
  vector === undefined ? "" : `${vector.storageType}${vector.pathOrInlineDv}@${vector.offset ?? ""}`;

/** A table's log replayed up to `version`: what "Action Reconciliation" of the protocol leaves. No I/O. */
export class TableState {
  version = -1;
  /** Version that last changed schema, properties or protocol. */
  metaDataVersion = -1;
  protocol: ProtocolAction | undefined;
  metaData: MetaDataAction | undefined;
  readonly files = new Map<string, TableFile>();
  readonly removed = new Map<string, RemoveAction>();
  readonly domains = new Map<string, string>();
  private cached: TableSnapshot | undefined;
  private trimAt = 1024;

  /** Within one commit a remove and an add of one path are an update of its vector, in whatever order they stand. */
  apply(version: number, actions: readonly Action[]): void {
    for (const { remove } of actions) {
      if (remove === undefined) continue;
      const path = decodeURIComponent(remove.path);
      if (vectorId(this.files.get(path)?.add.deletionVector) === vectorId(remove.deletionVector)) {
        this.files.delete(path);
      }
      this.removed.set(`${path} ${vectorId(remove.deletionVector)}`, remove);
    }
    for (const action of actions) {
      if (action.add !== undefined) this.add(action.add);
      if (action.domainMetadata !== undefined) {
        const { domain, configuration, removed } = action.domainMetadata;
        if (removed) this.domains.delete(domain);
        else this.domains.set(domain, configuration);
      }
      if (action.protocol !== undefined) this.useProtocol(action.protocol, version);
      if (action.metaData !== undefined) {
        this.metaData = action.metaData;
        this.metaDataVersion = version;
      }
    }
    this.version = version;
    this.cached = undefined;
  }

  /** Forgets files removed before `time` (ms), now and then: they are of no use to readers any more. */
  trimRemoved(time: number): void {
    if (this.removed.size < this.trimAt) return;
    for (const [key, { deletionTimestamp }] of this.removed) {
      if (deletionTimestamp < time) this.removed.delete(key);
    }
    this.trimAt = Math.max(1024, this.removed.size * 2);
  }

  private add(add: AddAction): void {
    const file = fileOf(add);
    this.files.set(file.path, file);
    this.removed.delete(`${file.path} ${vectorId(add.deletionVector)}`);
  }

  private useProtocol(protocol: ProtocolAction, version: number): void {
    const unknown = (protocol.readerFeatures ?? []).filter((feature) => !READER_FEATURES.has(feature));
    if (unknown.length > 0) {
      throw new TributaryError(
        "TRB-TABLE-UNSUPPORTED",
        `reader features ${unknown.join(", ")} are not known`,
      );
    }
    this.protocol = protocol;
    this.metaDataVersion = version;
  }

  snapshot(): TableSnapshot {
    if (this.metaData === undefined) throw new TributaryError("TRB-TABLE-CORRUPT", "the log has no metaData");
    this.cached ??= {
      version: this.version,
      columns: columnsOf(this.metaData.schemaString),
      partitionColumns: this.metaData.partitionColumns,
      properties: new Map(Object.entries(this.metaData.configuration)),
      files: [...this.files.values()],
      domains: new Map(this.domains),
      description: this.metaData.description,
    };
    return this.cached;
  }
}

function fileOf(add: AddAction): TableFile {
  const stats = add.stats === undefined ? undefined : (JSON.parse(add.stats) as Stats);
  if (stats?.numRecords === undefined) {
    throw new TributaryError("TRB-TABLE-UNSUPPORTED", "a file has no numRecords statistic");
  }
  return {
    path: decodeURIComponent(add.path),
    partition: add.partitionValues[PARTITION_COLUMN] ?? undefined,
    bytes: add.size,
    rows: stats.numRecords,
    maskedRows: add.deletionVector?.cardinality ?? 0,
    tombstones: add.tags?.[KIND_TAG] === TOMBSTONES,
    min: stats.minValues ?? {},
    max: stats.maxValues ?? {},
    add,
  };
}

export interface Stats {
  readonly numRecords: number;
  /** False once rows are masked: the bounds still bound, but no row needs to stand on them. */
  readonly tightBounds: boolean;
  readonly minValues?: Readonly<Record<string, unknown>>;
  readonly maxValues?: Readonly<Record<string, unknown>>;
}
