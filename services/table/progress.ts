import { TributaryError } from "../base/errors.js";
import type { Action } from "./actions.js";
import type { TableSnapshot } from "./types.js";

/**
 * Progress of a table along a stream, kept as domain metadata in the commits of the data it describes (I7): it
 * survives log checkpoints, and holds positions of any length.
 */
export type Positions = ReadonlyMap<string, string>;

const prefix = (stream: string): string => `tributary.pos.${stream}.`;

/** Partition → position of the last event of that partition the table has taken in. */
export function positionsOf(snapshot: Pick<TableSnapshot, "domains">, stream: string): Map<string, string> {
  const positions = new Map<string, string>();
  for (const [domain, configuration] of snapshot.domains) {
    if (!domain.startsWith(prefix(stream))) continue;
    const { position } = JSON.parse(configuration) as { position?: unknown };
    if (typeof position !== "string") throw new TributaryError("TRB-TABLE-CORRUPT", `${domain}: no position`);
    positions.set(domain.slice(prefix(stream).length), position);
  }
  return positions;
}

const configuration = (position: string): string => JSON.stringify({ position });

/** What a commit that moves a table from `from` to `to` must expect and set. `to` names moved partitions only. */
export function advancePositions(
  stream: string,
  from: Positions,
  to: Positions,
): { actions: Action[]; expect: Map<string, string | undefined> } {
  const actions: Action[] = [];
  const expect = new Map<string, string | undefined>();
  for (const [partition, position] of to) {
    const domain = `${prefix(stream)}${partition}`;
    const before = from.get(partition);
    if (before !== undefined && before >= position) {
      throw new Error(`assertion failed: position of ${domain} would not grow`);
    }
    expect.set(domain, before === undefined ? undefined : configuration(before));
    actions.push({ domainMetadata: { domain, configuration: configuration(position), removed: false } });
  }
  return { actions, expect };
}

const NEWEST = "tributary.newest";

/** When the newest event that the table has taken in was received, in ms since the epoch; undefined before the first. */
export function receivedAt(snapshot: Pick<TableSnapshot, "domains">): number | undefined {
  const configuration = snapshot.domains.get(NEWEST);
  return configuration === undefined
    ? undefined
    : (JSON.parse(configuration) as { receivedAt: number }).receivedAt;
}

/** The action that notes it, when `newest` is later than what is noted. */
export function newestReceived(
  snapshot: Pick<TableSnapshot, "domains">,
  newest: number | undefined,
): Action[] {
  if (newest === undefined || newest <= (receivedAt(snapshot) ?? 0)) return [];
  const configuration = JSON.stringify({ receivedAt: newest });
  return [{ domainMetadata: { domain: NEWEST, configuration, removed: false } }];
}
