import { setTimeout as sleep } from "node:timers/promises";
import type { _Record } from "@aws-sdk/client-kinesis";
import { TributaryError } from "../../base/errors.js";
import { pauseAfter } from "../../base/retry.js";
import { streamDown } from "../failures.js";
import { forgotten, type LossGuard } from "./loss-guard.js";
import type { KinesisMetrics } from "./metrics.js";
import {
  ExpiredIteratorException,
  InvalidArgumentException,
  isThrottled,
  ResourceNotFoundException,
  type ShardPlace,
  type StreamApi,
  sequenceIn,
} from "./stream-api.js";

export interface FetchedRecord {
  readonly sequence: string;
  readonly data: Uint8Array;
  /** ms since the epoch. */
  readonly arrivedAt: number;
}

export interface Fetched {
  readonly records: readonly FetchedRecord[];
  /** How far behind the newest record reading is after these; 0: there. */
  readonly behindMs: number;
  /** The shard is closed, and these were its last. */
  readonly ended: boolean;
}

/** What Kinesis answers, or pushes. */
export const fetchedOf = (
  records: readonly _Record[] | undefined,
  behindMs: number | undefined,
  ended: boolean,
): Fetched => ({
  records: (records ?? []).map((record) => ({
    sequence: record.SequenceNumber!,
    data: record.Data!,
    arrivedAt: record.ApproximateArrivalTimestamp?.getTime() ?? Date.now(),
  })),
  behindMs: behindMs ?? 0,
  ended,
});

/** The records of one shard, one piece after the other. */
export interface ShardSource {
  /** Errors: TRB-BUS-STREAM-DOWN, TRB-STREAM-FORGOTTEN; whatever is thrown after an abort means nothing. */
  next(): Promise<Fetched>;
}

export interface SourceOptions {
  readonly api: StreamApi;
  readonly shard: string;
  readonly place: ShardPlace;
  readonly guard: LossGuard;
  readonly signal: AbortSignal;
  readonly metrics: KinesisMetrics | undefined;
}

/** A shard answers five reads a second, of all its readers together. */
const READ_GAP_MS = 200;
/** How far our clock may be ahead of the one that tells when records came; a few of before may come along. */
const CLOCKS_MS = 60_000;
/** Failures in a row; throttling is none. */
const TRIES = 8;

/** Reads a shard by asking it: at its place, then on from answer to answer. */
export class PollSource implements ShardSource {
  private iterator: string | undefined;
  private place: ShardPlace;
  private readAt = Number.NEGATIVE_INFINITY;
  private failures = 0;

  constructor(private readonly options: SourceOptions) {
    this.place = options.place;
  }

  /** Takes its place now rather than at the first read. */
  async begin(): Promise<void> {
    const since = Date.now() - CLOCKS_MS;
    this.iterator ??= await this.findPlace();
    // What comes before the first read is after this place, also when the iterator has expired by then.
    if (this.place === "next") this.place = { since };
  }

  async next(): Promise<Fetched> {
    const { api, shard, guard, signal, metrics } = this.options;
    for (;;) {
      signal.throwIfAborted();
      await sleep(Math.max(0, this.readAt + READ_GAP_MS - performance.now()), undefined, { signal });
      if (await guard.doubts()) this.iterator = undefined;
      this.iterator ??= await this.findPlace();
      this.readAt = performance.now();
      try {
        const answer = await api.records(this.iterator, signal);
        this.failures = 0;
        this.iterator = answer.NextShardIterator;
        const { Records, MillisBehindLatest, NextShardIterator } = answer;
        const fetched = fetchedOf(Records, MillisBehindLatest, NextShardIterator === undefined);
        await guard.check(fetched, shard);
        const last = fetched.records.at(-1);
        if (last !== undefined) this.place = { sequence: last.sequence };
        return fetched;
      } catch (error) {
        if (signal.aborted || error instanceof TributaryError) throw error;
        if (error instanceof ExpiredIteratorException) {
          this.iterator = undefined;
          continue;
        }
        this.failures++;
        if (isThrottled(error)) metrics?.countThrottled(api.streamName, "read");
        else if (this.failures >= TRIES) throw streamDown("a shard cannot be read", error);
        await sleep(pauseAfter(this.failures), undefined, { signal });
      }
    }
  }

  private async findPlace(): Promise<string> {
    const { api, shard, guard } = this.options;
    const { place } = this;
    const sequence = sequenceIn(place);
    guard.placed(sequence);
    try {
      return await api.iterator(shard, place);
    } catch (error) {
      const { cause } = error as Error;
      if (cause instanceof ResourceNotFoundException) {
        // The stream is there, and the shard is not: it was trimmed with all that it held.
        if (!(await api.shards()).some(({ id }) => id === shard)) throw forgotten(shard);
      }
      if (!(cause instanceof InvalidArgumentException) || sequence === undefined) throw error;
      // A number that the shard does not know any more: the guard says whether anything can be missing.
      return api.iterator(shard, "oldest");
    }
  }
}
