import { setTimeout as sleep } from "node:timers/promises";
import {
  DescribeStreamSummaryCommand,
  ExpiredIteratorException,
  ExpiredNextTokenException,
  GetRecordsCommand,
  type GetRecordsCommandOutput,
  GetShardIteratorCommand,
  InvalidArgumentException,
  type KinesisClient,
  ListShardsCommand,
  ResourceNotFoundException,
  type Shard,
} from "@aws-sdk/client-kinesis";
import { TributaryError } from "../../base/errors.js";
import { pauseAfter } from "../../base/retry.js";
import type { SlotRange } from "../../base/slots.js";
import { streamDown } from "../failures.js";
import type { Retention } from "./loss-guard.js";

/** A shard of the stream, open or closed. */
export interface ShardInfo {
  readonly id: string;
  readonly slots: SlotRange;
  /** Shards that were split or merged into this one and that the stream still lists. */
  readonly parents: readonly string[];
  readonly open: boolean;
}

/** Whether the slots of a shard that has ended are those of listed children: a listing may lag behind what is read. */
export function isFollowed(id: string, shards: ReadonlyMap<string, ShardInfo>): boolean {
  const ended = shards.get(id);
  // Long gone, and its children have none to wait for.
  if (ended === undefined) return true;
  const children = [...shards.values()].filter(({ parents }) => parents.includes(id));
  return (
    Math.min(...children.map(({ slots }) => slots.start)) <= ended.slots.start &&
    Math.max(...children.map(({ slots }) => slots.end)) >= ended.slots.end
  );
}

/** From where a shard is read. */
export type ShardPlace = "oldest" | "next" | { readonly sequence: string } | { readonly since: number };

/** The record that a place comes after, where it is one's. */
export const sequenceIn = (place: ShardPlace): string | undefined =>
  typeof place === "object" && "sequence" in place ? place.sequence : undefined;

/** A shard's starting position, as both ways of reading name it. */
export function startingAt(place: ShardPlace) {
  if (place === "oldest") return { type: "TRIM_HORIZON" } as const;
  if (place === "next") return { type: "LATEST" } as const;
  if ("since" in place) return { type: "AT_TIMESTAMP", time: new Date(place.since) } as const;
  return { type: "AT_SEQUENCE_NUMBER", sequence: place.sequence } as const;
}

const TRIES = 6;
const HOUR_MS = 3_600_000;
/** How often the retention is asked for at most by who watches for what is gone: AWS takes 20 such requests a second. */
const RETENTION_GAP_MS = 10_000;
/** A slot is the upper 32 of the 128 bits of a hash key. */
const SLOT_SHIFT = 96n;

export const hashKeyOf = (slot: number): string => String(BigInt(slot) << SLOT_SHIFT);

/** Whether a request was refused because too much was asked of the stream: it has done nothing. */
export const isThrottled = (error: unknown): boolean =>
  error instanceof Error &&
  /^(ProvisionedThroughputExceeded|LimitExceeded|KMSThrottling|Throttling)/.test(error.name);

/** Whether asking again is of no use. */
const isFinal = (error: unknown): boolean =>
  error instanceof Error &&
  /^(AccessDenied|ResourceNotFound|InvalidArgument|Validation|ExpiredIterator|ExpiredNextToken|UnrecognizedClient|CredentialsProvider|InvalidSignature|KMS(AccessDenied|Disabled|InvalidState|NotFound|OptIn))/.test(
    error.name,
  );

export { ExpiredIteratorException, InvalidArgumentException, ResourceNotFoundException };

/** One stream's requests, beside writing. The client makes one try; here is the policy of trying again. */
export class StreamApi implements Retention {
  shortestMs: number;
  private retentionAskedAt = Date.now();
  private asking: Promise<void> | undefined;

  private constructor(
    readonly client: KinesisClient,
    /** As AWS names it. */
    readonly streamName: string,
    readonly arn: string,
    /** Of this stream alone, not of one that had or will have its name on AWS. */
    readonly name: string,
    /** As it was when the stream was opened. */
    readonly retentionMs: number,
    /** Of data and partition key. */
    readonly maxRecordBytes: number,
  ) {
    this.shortestMs = retentionMs;
  }

  /** Errors: TRB-CONFIG when there is no such stream or no right to it, TRB-BUS-STREAM-DOWN. */
  static async open(client: KinesisClient, streamName: string): Promise<StreamApi> {
    const command = new DescribeStreamSummaryCommand({ StreamName: streamName });
    const { StreamDescriptionSummary: found } = await asked("be described", () => client.send(command)).catch(
      (error: unknown) => {
        const { cause } = error as TributaryError;
        if (!isFinal(cause)) throw error;
        throw new TributaryError(
          "TRB-CONFIG",
          `stream.kinesis.stream: expected a stream that exists and may be read, found ${(cause as Error).name} for ${streamName}`,
          { cause },
        );
      },
    );
    const { StreamARN: arn, StreamCreationTimestamp: created, RetentionPeriodHours: hours } = found ?? {};
    if (arn === undefined || created === undefined || hours === undefined) {
      throw streamDown("the stream's description lacks its name, time or retention");
    }
    return new StreamApi(
      client,
      streamName,
      arn,
      `${streamName}-${created.getTime()}`,
      hours * HOUR_MS,
      (found?.MaxRecordSizeInKiB ?? 1024) * 1024,
    );
  }

  /** Operators may change it while we run. */
  async currentRetentionMs(): Promise<number> {
    const command = new DescribeStreamSummaryCommand({ StreamName: this.streamName });
    const { StreamDescriptionSummary: found } = await this.asked("be described", () =>
      this.client.send(command),
    );
    const hours = found?.RetentionPeriodHours;
    const ms = hours === undefined ? this.retentionMs : hours * HOUR_MS;
    this.shortestMs = Math.min(this.shortestMs, ms);
    return ms;
  }

  async lookAgain(): Promise<void> {
    if (this.asking === undefined) {
      // By the clock that tells the ages of records, which may have been set back.
      if (Math.abs(Date.now() - this.retentionAskedAt) < RETENTION_GAP_MS) return;
      this.retentionAskedAt = Date.now();
      const over = () => {
        this.asking = undefined;
      };
      this.asking = this.currentRetentionMs().then(over, over);
    }
    await this.asking;
  }

  async shards(): Promise<readonly ShardInfo[]> {
    for (;;) {
      const shards: Shard[] = [];
      let token: string | undefined;
      try {
        do {
          const query = token === undefined ? { StreamName: this.streamName } : { NextToken: token };
          const page = await this.asked("list its shards", () =>
            this.client.send(new ListShardsCommand(query)),
          );
          shards.push(...(page.Shards ?? []));
          token = page.NextToken;
        } while (token !== undefined);
      } catch (error) {
        if ((error as TributaryError).cause instanceof ExpiredNextTokenException) continue;
        throw error;
      }
      const listed = new Set(shards.map(({ ShardId }) => ShardId));
      return shards.map((shard) => toInfo(shard, listed));
    }
  }

  async iterator(shard: string, place: ShardPlace): Promise<string> {
    const { type, time, sequence } = { time: undefined, sequence: undefined, ...startingAt(place) };
    const command = new GetShardIteratorCommand({
      StreamName: this.streamName,
      ShardId: shard,
      ShardIteratorType: type,
      StartingSequenceNumber: sequence,
      Timestamp: time,
    });
    const { ShardIterator } = await this.asked("be read", () => this.client.send(command));
    if (ShardIterator === undefined) throw streamDown("a shard gave no iterator");
    return ShardIterator;
  }

  /** One try. Errors: those of the SDK. */
  records(iterator: string, signal: AbortSignal): Promise<GetRecordsCommandOutput> {
    return this.client.send(new GetRecordsCommand({ ShardIterator: iterator }), { abortSignal: signal });
  }

  asked<T>(what: string, request: () => Promise<T>): Promise<T> {
    return asked(what, request);
  }
}

/** Errors: TRB-BUS-STREAM-DOWN with the last failure as its cause. */
async function asked<T>(what: string, request: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await request();
    } catch (error) {
      if (tries === TRIES || isFinal(error)) throw streamDown(`the stream could not ${what}`, error);
      await sleep(pauseAfter(tries));
    }
  }
}

function toInfo(shard: Shard, listed: ReadonlySet<string | undefined>): ShardInfo {
  const first = BigInt(shard.HashKeyRange?.StartingHashKey ?? 0);
  const last = BigInt(shard.HashKeyRange?.EndingHashKey ?? 0);
  return {
    id: shard.ShardId!,
    // Events go by the first hash key of their slot: a bound within a slot leaves it to the shard below.
    slots: {
      start: Number((first + (1n << SLOT_SHIFT) - 1n) >> SLOT_SHIFT),
      end: Number(last >> SLOT_SHIFT) + 1,
    },
    parents: [shard.ParentShardId, shard.AdjacentParentShardId].filter(
      (id): id is string => id !== undefined && listed.has(id),
    ),
    open: shard.SequenceNumberRange?.EndingSequenceNumber === undefined,
  };
}
