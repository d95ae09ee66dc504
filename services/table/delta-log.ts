import { literal, rowsOf } from "../base/duckdb.js";
import { hasCode, TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type Action, commitKey, decodeCommit } from "./actions.js";
import type { Change } from "./changes.js";
import { hintedCheckpoint, type LogCheckpoint, type LogPlace, loadCheckpoint } from "./log-checkpoint.js";
import { corrupt, TableState } from "./state.js";

/** Reads `_delta_log`: where a table stands, from a log checkpoint and the commits after it. */

/** Commits held in memory, and confirmed, together. */
const STRETCH = 256;

/** The commit of one version, undefined when it is not there. Errors: TRB-TABLE-CORRUPT, with `details.commit`. */
export async function readCommit(
  store: ObjectStore,
  root: string,
  version: number,
): Promise<Action[] | undefined> {
  const bytes = await store.get(commitKey(root, version));
  if (bytes === undefined) return undefined;
  try {
    return decodeCommit(bytes);
  } catch (cause) {
    throw corrupt(version, "it is not readable", cause);
  }
}

/**
 * Brings `state` from its version to the newest one; tells `seen` of each commit on the way. A commit counts once it is
 * sure to stay: its writer may have died, or failed, between giving it its name and making the name durable, and
 * progress that was read from it must not be lost again.
 */
export async function advance(
  place: LogPlace,
  state: TableState,
  seen?: (change: Change, actions: readonly Action[]) => void,
): Promise<void> {
  const { store, root } = place;
  let failure: unknown;
  for (let commits: Action[][] = []; ; commits = []) {
    let actions: Action[] | undefined;
    do {
      try {
        actions = await readCommit(store, root, state.version + commits.length + 1);
      } catch (error) {
        failure = error;
        actions = undefined;
      }
      if (actions !== undefined) commits.push(actions);
    } while (actions !== undefined && commits.length < STRETCH);
    if (commits.length > 0) await store.confirm([commitKey(root, state.version + commits.length)]);
    for (const commit of commits) {
      const change = state.apply(state.version + 1, commit);
      seen?.(change, commit);
    }
    if (failure !== undefined) throw failure;
    if (actions === undefined) break;
  }
  await countRows(place, state);
}

/** Asks the files themselves for what adds of other writers may leave out. */
async function countRows({ store, root, duck }: LogPlace, state: TableState): Promise<void> {
  for (const path of [...state.uncounted]) {
    const rows = await store.withLocal([`${root}/${path}`], ([local]) =>
      duck
        .with((connection) =>
          rowsOf(connection, `SELECT num_rows FROM parquet_file_metadata(${literal(local!)})`),
        )
        .catch((cause: unknown) => {
          const reason = "a file whose rows the log does not count is missing or damaged";
          throw new TributaryError("TRB-TABLE-CORRUPT", reason, { cause });
        }),
    );
    state.count(path, Number(rows[0]![0]));
  }
}

/** What lies in `_delta_log`. */
export interface LogListing {
  /** Versions of the commits, ascending. */
  readonly commits: readonly number[];
  /** Complete log checkpoints, newest first. */
  readonly checkpoints: readonly LogCheckpoint[];
}

/** Lists the log; after version `after` where given. */
export async function listLog({ store, root }: LogPlace, after?: number): Promise<LogListing> {
  const commits: number[] = [];
  const parts = new Map<string, { version: number; wanted: number; keys: string[] }>();
  const startAfter = after === undefined ? undefined : commitKey(root, after);
  for await (const { key } of store.list(`${root}/_delta_log/`, startAfter)) {
    const name = key.slice(root.length + "/_delta_log/".length);
    const [, version, kind, , of] =
      /^(\d{20})\.(json|checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet)$/.exec(name) ?? [];
    if (version === undefined) continue;
    if (kind === "json") {
      commits.push(Number(version));
      continue;
    }
    const id = `${version}.${of ?? ""}`;
    const known = parts.get(id) ?? { version: Number(version), wanted: Number(of ?? 1), keys: [] };
    parts.set(id, known);
    known.keys.push(key);
  }
  const checkpoints = [...parts.values()].filter(({ wanted, keys }) => keys.length === wanted);
  return { commits, checkpoints: checkpoints.sort((a, b) => b.version - a.version) };
}

export interface OpenedLog {
  readonly state: TableState;
  /** Version of the log checkpoint that was read; undefined when all came from commits. */
  readonly checkpoint: number | undefined;
}

/**
 * Where the table stands. `_last_checkpoint` is believed as long as it leads somewhere; else whatever log checkpoint
 * does, or all commits from the first. Undefined when there is no table. Errors: TRB-TABLE-CORRUPT when nothing does.
 */
export async function openLog(place: LogPlace): Promise<OpenedLog | undefined> {
  const { store, root } = place;
  const hinted = await hintedCheckpoint(place);
  if (hinted === undefined && (await store.get(commitKey(root, 0))) !== undefined) {
    return startAt(place, undefined).catch((error: unknown) => reopen(place, error));
  }
  if (hinted !== undefined) return startAt(place, hinted).catch((error: unknown) => reopen(place, error));
  return reopen(place, undefined);
}

/** A state brought forward from a log checkpoint, or from nothing. */
async function startAt(place: LogPlace, from: LogCheckpoint | undefined): Promise<OpenedLog> {
  const state = new TableState();
  if (from !== undefined) {
    await loadCheckpoint(place, from, state);
    // The time of the newest commit, which log checkpoints do not hold.
    const commit = await readCommit(place.store, place.root, from.version).catch((error: unknown) => {
      if (!isDamage(error)) throw error;
    });
    state.time = commit?.[0]?.commitInfo?.inCommitTimestamp ?? 0;
  }
  await advance(place, state);
  return { state, checkpoint: from?.version };
}

/** Tries every way there is, newest log checkpoint first. `failure` is what the usual way came to. */
async function reopen(place: LogPlace, failure: unknown): Promise<OpenedLog | undefined> {
  if (failure !== undefined && !isDamage(failure)) throw failure;
  const { commits, checkpoints } = await listLog(place);
  if (commits.length === 0 && checkpoints.length === 0 && failure === undefined) return undefined;
  const failures: unknown[] = failure === undefined ? [] : [failure];
  const ways: (LogCheckpoint | undefined)[] = [...checkpoints];
  if (commits[0] === 0) ways.push(undefined);
  for (const way of ways) {
    try {
      const opened = await startAt(place, way);
      requireAll(opened.state.version, commits);
      return opened;
    } catch (error) {
      if (!isDamage(error)) throw error;
      failures.push(error);
    }
  }
  // What is wrong with the commits, or what they name, cannot be helped by another log checkpoint.
  const other = failures.find((error) => (error as TributaryError).details?.checkpoint === undefined);
  if (other !== undefined) throw other;
  const reason = "no log checkpoint is readable, and the commits do not reach back to the first";
  throw new TributaryError("TRB-TABLE-CORRUPT", reason, { cause: failures[0] });
}

const isDamage = (error: unknown): boolean => hasCode(error, "TRB-TABLE-CORRUPT");

/** Errors: TRB-TABLE-CORRUPT when a commit is missing between `version` and a later one. */
function requireAll(version: number, commits: readonly number[]): void {
  if ((commits.at(-1) ?? 0) > version) {
    throw corrupt(version + 1, "it is missing, though later ones are there");
  }
}

/**
 * For those who write: a commit that was lost must not be made anew under the later ones.
 * Errors: TRB-TABLE-CORRUPT.
 */
export async function requireNoGap(place: LogPlace, state: TableState): Promise<void> {
  const { commits } = await listLog(place, state.version);
  if (commits.length === 0) return;
  // Others may have committed since.
  await advance(place, state);
  requireAll(state.version, commits);
}

/**
 * For those who make a table where there is none, or seems to be: its first data file comes after its first commit.
 * Errors: TRB-TABLE-CORRUPT.
 */
export async function requireNoFiles({ store, root }: LogPlace): Promise<void> {
  for await (const { key } of store.list(`${root}/`)) {
    if (!key.endsWith(".parquet")) continue;
    const reason = "its log is gone while its files are there; restore _delta_log from a copy";
    throw new TributaryError("TRB-TABLE-CORRUPT", reason);
  }
}
