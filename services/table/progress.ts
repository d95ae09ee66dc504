import { assert, TributaryError } from "../base/errors.js";
import type { Action } from "./actions.js";
import type { TableSnapshot } from "./types.js";

/**
 * Progress of a table along its streams, kept as domain metadata in the commits of the data it describes (I7): it
 * survives log checkpoints, and holds positions of any length. A lake sees several streams in its life: a log that was
 * lost and begun anew has another name, and so has the service that replaces it.
 */
export type Progress = ReadonlyMap<Track, string>;

/** Partition → position, of one stream. */
export type Positions = ReadonlyMap<string, string>;

/** "<stream>.<partition>"; partitions have no dot in their names. */
export type Track = string;

const PREFIX = "tributary.pos.";

export const trackOf = (stream: string, partition: string): Track => `${stream}.${partition}`;

export function partsOf(track: Track): { readonly stream: string; readonly partition: string } {
  const dot = track.lastIndexOf(".");
  return { stream: track.slice(0, dot), partition: track.slice(dot + 1) };
}

/** Where a table stands on every stream that it has ever taken events from. */
export function progressOf(snapshot: Pick<TableSnapshot, "domains">): Map<Track, string> {
  const progress = new Map<Track, string>();
  for (const [domain, configuration] of snapshot.domains) {
    if (!domain.startsWith(PREFIX)) continue;
    const { position } = JSON.parse(configuration) as { position?: unknown };
    if (typeof position !== "string") throw new TributaryError("TRB-TABLE-CORRUPT", `${domain}: no position`);
    progress.set(domain.slice(PREFIX.length), position);
  }
  return progress;
}

/** Partition → position of the last event of that partition of the stream that the table has taken in. */
export const positionsOf = (snapshot: Pick<TableSnapshot, "domains">, stream: string): Map<string, string> =>
  positionsAlong(progressOf(snapshot), stream);

export function positionsAlong(progress: Progress, stream: string): Map<string, string> {
  const positions = new Map<string, string>();
  for (const [track, position] of progress) {
    const at = partsOf(track);
    if (at.stream === stream) positions.set(at.partition, position);
  }
  return positions;
}

export function progressAlong(stream: string, positions: Positions): Map<Track, string> {
  return new Map([...positions].map(([partition, position]) => [trackOf(stream, partition), position]));
}

const configuration = (position: string): string => JSON.stringify({ position });

/** What a commit that moves a table must expect and set. */
export interface Move {
  readonly actions: Action[];
  readonly expect: Map<string, string | undefined>;
}

/** The move of a table from `from` to `to`, which names moved tracks only. */
export function advance(from: Progress, to: Progress): Move {
  for (const [track, position] of to) {
    assert((from.get(track) ?? "") < position, `position of ${track} would not grow`);
  }
  return setProgress(from, to);
}

/** As `advance`, along one stream. */
export const advancePositions = (stream: string, from: Positions, to: Positions): Move =>
  advance(progressAlong(stream, from), progressAlong(stream, to));

/** As `advance`, forwards or backwards: of a table that becomes another one. */
export function setProgress(from: Progress, to: Progress): Move {
  const actions: Action[] = [];
  const expect = new Map<string, string | undefined>();
  for (const [track, position] of to) {
    const domain = `${PREFIX}${track}`;
    const before = from.get(track);
    expect.set(domain, before === undefined ? undefined : configuration(before));
    actions.push({ domainMetadata: { domain, configuration: configuration(position), removed: false } });
  }
  return { actions, expect };
}

/** What takes tracks away from a table that has not taken in anything of them any more. */
export const withoutTracks = (tracks: Iterable<Track>): Action[] =>
  [...tracks].map((track) => ({
    domainMetadata: { domain: `${PREFIX}${track}`, configuration: "", removed: true },
  }));

/** The tracks on which a table is beyond what it is made from: that was set back, or is another one. */
export const aheadOf = (table: Progress, source: Progress): Track[] =>
  [...table].flatMap(([track, position]) => (position > (source.get(track) ?? "") ? [track] : []));

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
