import { setTimeout as sleep } from "node:timers/promises";
import {
  DescribeStreamConsumerCommand,
  RegisterStreamConsumerCommand,
  ResourceInUseException,
  ResourceNotFoundException,
  SubscribeToShardCommand,
  type SubscribeToShardEventStream,
} from "@aws-sdk/client-kinesis";
import { TributaryError } from "../../base/errors.js";
import { pauseAfter } from "../../base/retry.js";
import { streamDown } from "../failures.js";
import { forgotten } from "./loss-guard.js";
import { type Fetched, fetchedOf, type ShardSource, type SourceOptions } from "./shard-source.js";
import {
  InvalidArgumentException,
  type ShardPlace,
  type StreamApi,
  sequenceIn,
  startingAt,
} from "./stream-api.js";

const ACTIVE_TRIES = 100;
const ACTIVE_GAP_MS = 500;
const TRIES = 8;
const TAKEN_MS = 1_000;
/** A subscription says something every few seconds, if only that nothing has come; one that is silent has been cut. */
const SILENT_MS = 60_000;

/**
 * Registers a consumer with a throughput of its own in each shard. Resolves to its ARN once it may subscribe.
 * Errors: TRB-BUS-STREAM-DOWN.
 */
export async function registerConsumer(api: StreamApi, name: string): Promise<string> {
  const { client, arn } = api;
  const command = new RegisterStreamConsumerCommand({ StreamARN: arn, ConsumerName: name });
  await api.asked("take a consumer", () =>
    client.send(command).catch((error: unknown) => {
      // It is there already.
      if (!(error instanceof ResourceInUseException)) throw error;
    }),
  );
  for (let tries = 0; tries < ACTIVE_TRIES; tries++) {
    const { ConsumerDescription: found } = await api.asked("show a consumer", () =>
      client.send(new DescribeStreamConsumerCommand({ StreamARN: arn, ConsumerName: name })),
    );
    if (found?.ConsumerStatus === "ACTIVE") return found.ConsumerARN!;
    await sleep(ACTIVE_GAP_MS);
  }
  throw streamDown("a consumer with a throughput of its own did not become active");
}

/** Has a shard's records pushed (enhanced fan-out). A subscription lasts five minutes; the next goes on after it. */
export class PushSource implements ShardSource {
  private events: AsyncIterator<SubscribeToShardEventStream> | undefined;
  /** Ends the subscription, so that the next one does not find the shard taken. */
  private end = new AbortController();
  private place: ShardPlace;
  private failures = 0;

  constructor(
    private readonly options: SourceOptions,
    private readonly consumer: string,
  ) {
    this.place = options.place;
  }

  async next(): Promise<Fetched> {
    const { api, shard, guard, signal } = this.options;
    for (;;) {
      signal.throwIfAborted();
      try {
        if (await guard.doubts()) this.unsubscribe();
        this.events ??= await this.subscribe();
        const { value, done } = await this.events.next();
        const event = done === true ? undefined : value.SubscribeToShardEvent;
        if (event === undefined) {
          this.unsubscribe();
          continue;
        }
        this.failures = 0;
        const { Records, MillisBehindLatest, ContinuationSequenceNumber } = event;
        const fetched = fetchedOf(Records, MillisBehindLatest, ContinuationSequenceNumber === undefined);
        await guard.check(fetched, shard);
        const last = fetched.records.at(-1);
        if (last !== undefined) this.place = { sequence: last.sequence };
        return fetched;
      } catch (error) {
        if (signal.aborted || error instanceof TributaryError) throw error;
        this.unsubscribe();
        if (error instanceof ResourceNotFoundException) {
          if (!(await api.shards()).some(({ id }) => id === shard)) throw forgotten(shard);
        }
        if (error instanceof InvalidArgumentException) this.place = "oldest";
        this.failures++;
        // Whoever had the shard before us, or our own last connection, may be subscribed for some seconds yet.
        const taken = error instanceof ResourceInUseException;
        if (!taken && this.failures >= TRIES) throw streamDown("a shard cannot be subscribed to", error);
        const pause = pauseAfter(this.failures);
        await sleep(taken ? Math.min(pause, TAKEN_MS) : pause, undefined, { signal });
      }
    }
  }

  private unsubscribe(): void {
    this.events = undefined;
    this.end.abort();
    this.end = new AbortController();
  }

  private async subscribe(): Promise<AsyncIterator<SubscribeToShardEventStream>> {
    const { api, shard, guard, signal } = this.options;
    const { place } = this;
    guard.placed(sequenceIn(place));
    const { type, time, sequence } = { time: undefined, sequence: undefined, ...startingAt(place) };
    const { EventStream } = await api.client.send(
      new SubscribeToShardCommand({
        ConsumerARN: this.consumer,
        ShardId: shard,
        StartingPosition: { Type: type, SequenceNumber: sequence, Timestamp: time },
      }),
      { abortSignal: AbortSignal.any([signal, this.end.signal]), requestTimeout: SILENT_MS },
    );
    if (EventStream === undefined) throw new Error("no event stream");
    return EventStream[Symbol.asyncIterator]();
  }
}
