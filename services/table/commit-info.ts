import { packageVersion } from "../base/paths.js";
import type { Action, AddAction, CommitInfoAction, MetaDataAction } from "./actions.js";
import { ACTIONS, COMMIT_TIMES, type Stats, type TableState } from "./state.js";

/** What a commit tells of itself, to people and to other engines. */

const ENGINE = `tributary/${packageVersion}`;

const PARAMETERS = {
  "CREATE TABLE": {},
  "UPGRADE PROTOCOL": {},
  "REPLACE TABLE": {},
  "REPLACE TENANT": {},
  "SET DOMAIN": {},
  WRITE: { mode: "Append", partitionBy: "[]" },
  MERGE: { predicate: '["entities of the batch, greatest order first"]' },
  DELETE: { predicate: '["rows that are done with"]' },
  REPAIR: {},
  CLOSE: {},
  "VACUUM START": {},
  OPTIMIZE: { predicate: "[]", auto: "true" },
} satisfies Readonly<Record<string, Readonly<Record<string, string>>>>;

export type Operation = keyof typeof PARAMETERS;

interface Described {
  readonly operation: Operation;
  readonly actions: readonly Action[];
  readonly serializable?: boolean;
}

/** The commitInfo action of a commit that comes after `before`; it stands first in the commit. */
export function commitInfo(commit: Described, txnId: string, before: TableState | undefined): Action {
  const { operation, actions, serializable = true } = commit;
  const tableId = (actions.find(({ metaData }) => metaData !== undefined)?.metaData ?? before?.metaData)?.id;
  const info: CommitInfoAction = {
    timestamp: Date.now(),
    operation,
    operationParameters: PARAMETERS[operation],
    // With this one: a commit that was torn between two lines looks whole otherwise.
    operationMetrics: { ...metricsOf(actions), [ACTIONS]: String(actions.length + 1) },
    ...(before === undefined ? {} : { readVersion: before.version }),
    isolationLevel: serializable ? "Serializable" : "WriteSerializable",
    // It read nothing of the table that another commit could have changed.
    isBlindAppend: !serializable && operation === "WRITE",
    engineInfo: ENGINE,
    txnId,
    ...(tableId === undefined ? {} : { tableId }),
  };
  return { commitInfo: info };
}

const recordsOf = ({ stats }: AddAction): number =>
  stats === undefined ? 0 : (JSON.parse(stats) as Stats).numRecords;

/** Counts as text, as Delta has them. Rows are those that readers see. */
function metricsOf(actions: readonly Action[]): Record<string, string> {
  const removes = new Map(
    actions.flatMap(({ remove }) => (remove === undefined ? [] : [[remove.path, remove]])),
  );
  const metrics = {
    numAddedFiles: 0,
    numAddedBytes: 0,
    numOutputRows: 0,
    numDeletionVectorsUpdated: 0,
    numMaskedRows: 0,
    numRemovedFiles: 0,
    numRemovedBytes: 0,
  };
  for (const { add } of actions) {
    if (add === undefined) continue;
    const masked = add.deletionVector?.cardinality ?? 0;
    const replaced = removes.get(add.path);
    if (replaced === undefined) {
      metrics.numAddedFiles++;
      metrics.numAddedBytes += add.size;
      metrics.numOutputRows += recordsOf(add) - masked;
    } else {
      removes.delete(add.path);
      metrics.numDeletionVectorsUpdated++;
      metrics.numMaskedRows += masked - (replaced.deletionVector?.cardinality ?? 0);
    }
  }
  for (const { size } of removes.values()) {
    metrics.numRemovedFiles++;
    metrics.numRemovedBytes += size;
  }
  return Object.fromEntries(Object.entries(metrics).map(([name, count]) => [name, String(count)]));
}

const SINCE_VERSION = "delta.inCommitTimestampEnablementVersion";
const SINCE_TIME = "delta.inCommitTimestampEnablementTimestamp";

/**
 * The actions as they are offered as one version: with the commit's own time, greater than that of the commit before,
 * and with a note of where such times begin (Delta protocol, "In-Commit Timestamps").
 */
export function stamped(
  actions: readonly Action[],
  version: number,
  now: number,
  before: TableState | undefined,
): Action[] {
  const metaData = actions.find((action) => action.metaData !== undefined)?.metaData;
  const configuration = (metaData ?? before?.metaData)?.configuration;
  if (configuration?.[COMMIT_TIMES] !== "true") return [...actions];
  const time = Math.max(now, (before?.time ?? 0) + 1);
  return actions.map((action) => {
    if (action.commitInfo !== undefined) {
      const { timestamp: _, ...info } = action.commitInfo;
      return { commitInfo: { timestamp: time, inCommitTimestamp: time, ...info } };
    }
    if (action.metaData === undefined) return action;
    return { metaData: withStart(action.metaData, version, time, before?.metaData) };
  });
}

function withStart(
  metaData: MetaDataAction,
  version: number,
  time: number,
  before: MetaDataAction | undefined,
): MetaDataAction {
  const start: Record<string, string> = {};
  if (before?.configuration[COMMIT_TIMES] === "true") {
    for (const name of [SINCE_VERSION, SINCE_TIME]) {
      const value = before.configuration[name];
      if (value !== undefined) start[name] = value;
    }
  } else if (version > 0) {
    start[SINCE_VERSION] = String(version);
    start[SINCE_TIME] = String(time);
  }
  return { ...metaData, configuration: { ...metaData.configuration, ...start } };
}

/** Notes that `stamped` puts into metaData. */
export const STAMPED = [SINCE_VERSION, SINCE_TIME];
