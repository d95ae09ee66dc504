/** Actions of the Delta transaction log (Delta protocol, "Actions"), as they stand in a commit's JSON lines. */

export interface DeletionVectorDescriptor {
  readonly storageType: "u" | "i" | "p";
  readonly pathOrInlineDv: string;
  readonly offset?: number;
  readonly sizeInBytes: number;
  readonly cardinality: number;
}

export interface AddAction {
  readonly path: string;
  readonly partitionValues: Readonly<Record<string, string | null>>;
  readonly size: number;
  readonly modificationTime: number;
  readonly dataChange: boolean;
  readonly stats?: string;
  readonly tags?: Readonly<Record<string, string>>;
  readonly deletionVector?: DeletionVectorDescriptor;
}

export interface RemoveAction {
  readonly path: string;
  readonly deletionTimestamp: number;
  readonly dataChange: boolean;
  readonly extendedFileMetadata: true;
  readonly partitionValues: Readonly<Record<string, string | null>>;
  readonly size: number;
  readonly deletionVector?: DeletionVectorDescriptor;
}

export interface MetaDataAction {
  readonly id: string;
  readonly name?: string;
  readonly description?: string;
  readonly format: { readonly provider: string; readonly options: Readonly<Record<string, string>> };
  readonly schemaString: string;
  readonly partitionColumns: readonly string[];
  readonly configuration: Readonly<Record<string, string>>;
  readonly createdTime?: number;
}

export interface ProtocolAction {
  readonly minReaderVersion: number;
  readonly minWriterVersion: number;
  readonly readerFeatures?: readonly string[];
  readonly writerFeatures?: readonly string[];
}

export interface DomainMetadataAction {
  readonly domain: string;
  readonly configuration: string;
  readonly removed: boolean;
}

export interface CommitInfoAction {
  readonly timestamp: number;
  /** Grows from commit to commit, and stays when the files are copied (writer feature `inCommitTimestamp`). */
  readonly inCommitTimestamp?: number;
  readonly operation: string;
  readonly operationParameters: Readonly<Record<string, string>>;
  readonly operationMetrics?: Readonly<Record<string, string>>;
  readonly readVersion?: number;
  readonly isolationLevel?: string;
  readonly isBlindAppend?: boolean;
  readonly engineInfo: string;
  /** Ours alone: tells an ambiguous put apart from another writer's commit. */
  readonly txnId: string;
  /** Ours alone: id of the table's metaData. A log that was set aside and begun anew has another. */
  readonly tableId?: string;
}

/** The last transaction of an application: what lets its writer know that it need not write again. */
export interface TxnAction {
  readonly appId: string;
  readonly version: number;
  readonly lastUpdated?: number;
}

export interface Action {
  readonly add?: AddAction;
  readonly remove?: RemoveAction;
  readonly metaData?: MetaDataAction;
  readonly protocol?: ProtocolAction;
  readonly domainMetadata?: DomainMetadataAction;
  readonly commitInfo?: CommitInfoAction;
  readonly txn?: TxnAction;
}

/** One action a line. */
export const encodeCommit = (actions: readonly Action[]): Buffer =>
  Buffer.from(`${actions.map((action) => JSON.stringify(action)).join("\n")}\n`);

export const decodeCommit = (bytes: Buffer): Action[] =>
  bytes
    .toString("utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const action: unknown = JSON.parse(line);
      if (typeof action !== "object" || action === null) throw new SyntaxError("an action is no object");
      return action as Action;
    });

/** The remove that takes away exactly this add: same path, same vector. */
export const removeOf = (add: AddAction, at: number, dataChange: boolean): RemoveAction => ({
  path: add.path,
  deletionTimestamp: at,
  dataChange,
  extendedFileMetadata: true,
  partitionValues: add.partitionValues,
  size: add.size,
  ...(add.deletionVector === undefined ? {} : { deletionVector: add.deletionVector }),
});

export const commitKey = (root: string, version: number): string =>
  `${root}/_delta_log/${String(version).padStart(20, "0")}.json`;

export const checkpointKey = (root: string, version: number): string =>
  `${root}/_delta_log/${String(version).padStart(20, "0")}.checkpoint.parquet`;
