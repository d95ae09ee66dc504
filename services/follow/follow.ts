import { setImmediate } from "node:timers/promises";
import { TributaryError } from "../base/errors.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import type { PayloadSource } from "../offload/payload-of.js";
import type { ChangeStreamReader, Checkpoint, StreamBatch } from "../stream/change-stream.js";
import { type About, type Change, Changes } from "./change.js";

/** How far a follower has come: plain JSON, to be kept with what was made of the changes. */
export interface FollowedTo {
  readonly stream: string;
  /** Partition → position of the last event that was delivered. */
  readonly positions: Readonly<Record<string, string>>;
}

export interface Followed {
  /** In the order of the stream, partition by partition. */
  readonly changes: readonly Change[];
  /** Events that could not be read: no event at all, or a payload that fits no descriptor. */
  readonly unreadable: number;
  /** Where to go on once these changes are done; the same object as before when nothing came. */
  readonly to: FollowedTo;
}

export interface FollowOptions {
  readonly reader: ChangeStreamReader;
  readonly registry: ProtoRegistry;
  /** Where payloads are that did not travel with their events. */
  readonly payloads: PayloadSource;
  /** Where to begin: what an earlier follower has come to, the oldest event that is left, or the next one to come. */
  readonly from: FollowedTo | "oldest" | "next";
  /** Whose changes are built; default: all. */
  readonly wanted?: (about: About) => boolean;
  /** Ends instead of waiting once the events are delivered that were there at the beginning. */
  readonly untilHead?: boolean;
  readonly signal?: AbortSignal;
}

const READ = { maxEvents: 1_000, maxBytes: 4 * 1024 * 1024 };
const WAIT_MS = 1_000;
const PATIENCE_MS = 30_000;
/** Payloads that are delivered at once, unpacked and those from elsewhere included, and one more. */
const PAYLOAD_BYTES = 64 * 1024 * 1024;
/** Events decoded in one turn of the event loop. */
const AT_ONCE = 100;

/**
 * Follows a stream independently of ingest and of other followers. At least once: whoever keeps `to` together with what
 * it made of the changes gets each event again that it has not kept, and may see some twice; `Change.order` settles that,
 * too. Yields without changes every second while none come: a time to save. Nothing waits for a follower: one that is
 * slower than the stream's retention is told.
 * Errors: TRB-STREAM-FORGOTTEN, TRB-BUS-STREAM-DOWN, TRB-STORE-FAILED (large payloads cannot be fetched now); TRB-CONFIG for a `from` of another stream.
 */
export async function* follow(options: FollowOptions): AsyncGenerator<Followed> {
  const { reader, from, signal } = options;
  const head = await reader.head();
  const start = typeof from === "string" ? from : checkpointOf(from, reader.name, head);
  const reached = new Map(start === "next" ? head : start === "oldest" ? [] : start);
  let to: FollowedTo = { stream: reader.name, positions: Object.fromEntries(reached) };
  const goal = options.untilHead ? head : undefined;
  const follower = await reader.follow(start);
  let idle = 0;
  const wanted = options.wanted ?? (() => true);
  const changes = new Changes(options.registry, options.payloads);
  try {
    while (signal?.aborted !== true && !(goal !== undefined && hasReached(reached, goal))) {
      const batch = await follower.read({
        ...READ,
        waitMs: WAIT_MS,
        ...(signal === undefined ? {} : { signal }),
      });
      if (batch === undefined) {
        idle++;
        // A stream may end in what is never delivered: a marker, or what was forgotten meanwhile.
        if (goal !== undefined && idle * WAIT_MS >= PATIENCE_MS) return;
        yield { changes: [], unreadable: 0, to };
        continue;
      }
      idle = 0;
      for await (const { read, unreadable, end } of portions(changes, batch, wanted)) {
        for (const [partition, position] of end) reached.set(partition, position);
        to = { stream: reader.name, positions: Object.fromEntries(reached) };
        yield { changes: read, unreadable, to };
      }
    }
  } finally {
    await follower.close();
  }
}

interface Portion {
  readonly read: readonly Change[];
  readonly unreadable: number;
  /** Partition → position of the last event up to here. */
  readonly end: Checkpoint;
}

/** A batch, cut where its payloads, which may be packed or fetched for it, would fill memory. */
async function* portions(
  changes: Changes,
  batch: StreamBatch,
  wanted: (about: About) => boolean,
): AsyncGenerator<Portion> {
  let read: Change[] = [];
  let unreadable = 0;
  let held = 0;
  let end = new Map<string, string>();
  for (let i = 0; i < batch.count; i++) {
    const partition = batch.names[batch.partitions[i]!]!;
    const position = batch.positions[i]!;
    const place = { partition, position, receivedAt: batch.receivedAt[i]! };
    const found = changes.read(batch.bytes, batch.starts[i]!, batch.ends[i]!, place, wanted);
    const change = found instanceof Promise ? await found : found;
    end.set(partition, position);
    if (typeof change === "string") unreadable++;
    else if (change !== undefined) {
      read.push(change);
      held += change.payloadBytes?.length ?? 0;
    }
    if (held >= PAYLOAD_BYTES) {
      yield { read, unreadable, end };
      [read, unreadable, held, end] = [[], 0, 0, new Map()];
    }
    if (i % AT_ONCE === AT_ONCE - 1) await setImmediate();
  }
  if (end.size > 0) yield { read, unreadable, end };
}

const hasReached = (reached: Checkpoint, goal: Checkpoint): boolean =>
  [...goal].every(([partition, position]) => (reached.get(partition) ?? "") >= position);

function checkpointOf({ stream, positions }: FollowedTo, name: string, head: Checkpoint): Checkpoint {
  if (stream !== name) {
    throw new TributaryError("TRB-CONFIG", `from.stream: expected "${name}", found "${stream}"`);
  }
  const checkpoint = new Map(Object.entries(positions));
  for (const [partition, position] of checkpoint) {
    const last = head.get(partition);
    // A shard that has ended long ago has no last event any more.
    if (last === undefined || position <= last) continue;
    const reason = `the stream ends before what was followed of partition ${partition}: it was restored from a copy`;
    throw new TributaryError("TRB-STREAM-FORGOTTEN", reason);
  }
  return checkpoint;
}
