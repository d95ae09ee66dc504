import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CreateStreamCommand,
  DeleteStreamCommand,
  DescribeStreamSummaryCommand,
  type KinesisClient,
  ListShardsCommand,
  MergeShardsCommand,
  type Shard,
  SplitShardCommand,
} from "@aws-sdk/client-kinesis";
import { pino } from "pino";
import type { LeaseStore } from "../../services/lease/lease-store.js";
import { connectKinesis } from "../../services/stream/kinesis/connect.js";
import { KinesisReader, type KinesisReaderOptions } from "../../services/stream/kinesis/reader.js";
import { KinesisWriter } from "../../services/stream/kinesis/writer.js";

process.env.AWS_ACCESS_KEY_ID ??= "test";
process.env.AWS_SECRET_ACCESS_KEY ??= "test";
process.env.AWS_REGION ??= "us-east-1";
process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED = "true";

/** One stream of a test, with what was opened on it. */
export class TestStream {
  readonly client: KinesisClient;
  private readonly opened: { close(): Promise<void> }[] = [];

  private constructor(
    readonly endpoint: string,
    readonly stream: string,
    readonly leases: LeaseStore,
  ) {
    // The servers take their time, on a busy machine above all.
    this.client = connectKinesis({ endpoint, answerMs: 120_000 });
  }

  static async create(options: {
    readonly endpoint: string;
    readonly leases: LeaseStore;
    readonly shards?: number;
    readonly maxRecordKiB?: number;
  }): Promise<TestStream> {
    const { endpoint, leases, shards = 4, maxRecordKiB } = options;
    const test = new TestStream(endpoint, `test-${randomUUID()}`, leases);
    await test.client.send(
      new CreateStreamCommand({
        StreamName: test.stream,
        ShardCount: shards,
        MaxRecordSizeInKiB: maxRecordKiB,
      }),
    );
    await test.active();
    return test;
  }

  async active(): Promise<void> {
    for (let tries = 0; tries < 300; tries++) {
      const { StreamDescriptionSummary: found } = await this.client.send(
        new DescribeStreamSummaryCommand({ StreamName: this.stream }),
      );
      if (found?.StreamStatus === "ACTIVE") return;
      await sleep(30);
    }
    throw new Error("the stream did not become active");
  }

  async shards(): Promise<Shard[]> {
    return (await this.client.send(new ListShardsCommand({ StreamName: this.stream }))).Shards ?? [];
  }

  /** The open ones, by their ranges. */
  async openShards(): Promise<Shard[]> {
    const start = (shard: Shard) => BigInt(shard.HashKeyRange!.StartingHashKey!);
    return (await this.shards())
      .filter((shard) => shard.SequenceNumberRange?.EndingSequenceNumber === undefined)
      .sort((a, b) => (start(a) < start(b) ? -1 : 1));
  }

  async split(shard: Shard): Promise<void> {
    const [low, high] = [shard.HashKeyRange!.StartingHashKey!, shard.HashKeyRange!.EndingHashKey!].map(
      BigInt,
    );
    await this.client.send(
      new SplitShardCommand({
        StreamName: this.stream,
        ShardToSplit: shard.ShardId,
        NewStartingHashKey: String((low! + high!) / 2n + 1n),
      }),
    );
    await this.active();
  }

  async merge(one: Shard, other: Shard): Promise<void> {
    await this.client.send(
      new MergeShardsCommand({
        StreamName: this.stream,
        ShardToMerge: one.ShardId,
        AdjacentShardToMerge: other.ShardId,
      }),
    );
    await this.active();
  }

  async openWriter(client = this.client): Promise<KinesisWriter> {
    const writer = await KinesisWriter.open({ client, stream: this.stream, leases: async () => this.leases });
    this.opened.push(writer);
    return writer;
  }

  async openReader(options: Partial<KinesisReaderOptions> = {}): Promise<KinesisReader> {
    const reader = await KinesisReader.open({
      client: this.client,
      stream: this.stream,
      leases: async () => this.leases,
      log: pino({ level: "silent" }),
      ...options,
    });
    this.opened.push(reader);
    return reader;
  }

  async dispose(): Promise<void> {
    for (const one of this.opened.reverse()) await one.close();
    await this.client.send(
      new DeleteStreamCommand({ StreamName: this.stream, EnforceConsumerDeletion: true }),
    );
    this.client.destroy();
  }
}
