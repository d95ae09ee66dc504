import { createHash } from "node:crypto";
import {
  DescribeStreamSummaryCommand,
  ExpiredIteratorException,
  GetRecordsCommand,
  GetShardIteratorCommand,
  type KinesisClient,
  ListShardsCommand,
  ProvisionedThroughputExceededException,
  PutRecordsCommand,
} from "@aws-sdk/client-kinesis";

const METADATA = { message: "fake", $metadata: {} };

interface FakeRecord {
  readonly number: bigint;
  readonly data: Buffer;
  readonly at: number;
}

interface FakeShard {
  readonly id: string;
  readonly first: bigint;
  readonly last: bigint;
  readonly parents: readonly string[];
  closed: boolean;
  records: FakeRecord[];
}

const ALL = 2n ** 128n;

/**
 * As much of Kinesis as tests need that no server here does: refusing for lack of room, losing answers, trimming,
 * iterators that expire when told to.
 */
export class FakeKinesis {
  readonly shards: FakeShard[] = [];
  retentionHours = 24;
  maxRecordKiB = 1024;
  /** Told of each record of a request before it is taken: "refuse" for no room, "fail" for a failure inside. */
  fate: (shard: string) => "refuse" | "fail" | undefined = () => undefined;
  /** Called around whole requests; what it throws the caller gets, before or after the work is done. */
  before: (command: unknown) => void = () => undefined;
  after: (command: unknown) => void = () => undefined;
  readonly requests: unknown[] = [];
  /** Iterators given out so far do not hold any more. */
  private era = 0;
  private number = 10n ** 55n;

  constructor(count: number) {
    const size = ALL / BigInt(count);
    for (let i = 0n; i < count; i++) {
      this.addShard(i * size, i === BigInt(count) - 1n ? ALL - 1n : (i + 1n) * size - 1n, []);
    }
  }

  private addShard(first: bigint, last: bigint, parents: readonly string[]): void {
    const id = `shardId-${String(this.shards.length).padStart(12, "0")}`;
    this.shards.push({ id, first, last, parents, closed: false, records: [] });
  }

  split(index: number): void {
    const { id, first, last } = this.shards[index]!;
    this.shards[index]!.closed = true;
    const middle = (first + last) / 2n;
    this.addShard(first, middle, [id]);
    this.addShard(middle + 1n, last, [id]);
  }

  expireIterators(): void {
    this.era++;
  }

  client(): KinesisClient {
    const send = async (command: unknown) => {
      this.requests.push(command);
      this.before(command);
      const answer = this.answer(command);
      await new Promise((resolve) => setTimeout(resolve, 2));
      this.after(command);
      return answer;
    };
    return { send } as unknown as KinesisClient;
  }

  private answer(command: unknown): object {
    if (command instanceof DescribeStreamSummaryCommand) {
      return {
        StreamDescriptionSummary: {
          StreamARN: "arn:aws:kinesis:us-east-1:1:stream/fake",
          StreamCreationTimestamp: new Date(1_700_000_000_000),
          RetentionPeriodHours: this.retentionHours,
          MaxRecordSizeInKiB: this.maxRecordKiB,
        },
      };
    }
    if (command instanceof ListShardsCommand) {
      return {
        Shards: this.shards.map(({ id, first, last, parents, closed }) => ({
          ShardId: id,
          HashKeyRange: { StartingHashKey: String(first), EndingHashKey: String(last) },
          ParentShardId: parents[0],
          AdjacentParentShardId: parents[1],
          SequenceNumberRange: {
            StartingSequenceNumber: "1",
            EndingSequenceNumber: closed ? "2" : undefined,
          },
        })),
      };
    }
    if (command instanceof PutRecordsCommand) return this.put(command);
    if (command instanceof GetShardIteratorCommand) return this.iterator(command);
    if (command instanceof GetRecordsCommand) return this.get(command);
    throw new Error("no such request here");
  }

  private put({ input }: PutRecordsCommand) {
    if (input.Records!.length > 500) throw new Error("more than 500 records");
    const sizes = input.Records!.map(({ Data, PartitionKey }) => Data!.length + PartitionKey!.length);
    if (sizes.some((size) => size > this.maxRecordKiB * 1024)) throw new Error("a record too large");
    if (sizes.reduce((sum, size) => sum + size, 0) > 10 * 1024 * 1024) throw new Error("a request too large");
    const Records = input.Records!.map(({ Data, PartitionKey, ExplicitHashKey }) => {
      const hashed = createHash("md5").update(PartitionKey!).digest("hex");
      const key = ExplicitHashKey === undefined ? BigInt(`0x${hashed}`) : BigInt(ExplicitHashKey);
      const shard = this.shards.find(({ first, last, closed }) => !closed && first <= key && key <= last)!;
      const fate = this.fate(shard.id);
      if (fate === "refuse")
        return { ErrorCode: "ProvisionedThroughputExceededException", ErrorMessage: "no" };
      if (fate === "fail") return { ErrorCode: "InternalFailure", ErrorMessage: "no" };
      this.number += 1_000_003n;
      shard.records.push({ number: this.number, data: Buffer.from(Data!), at: Date.now() });
      return { ShardId: shard.id, SequenceNumber: String(this.number) };
    });
    return { Records, FailedRecordCount: Records.filter(({ ErrorCode }) => ErrorCode).length };
  }

  private iterator({ input }: GetShardIteratorCommand) {
    const shard = this.shards.find(({ id }) => id === input.ShardId)!;
    const last = shard.records.at(-1)?.number ?? 0n;
    const from =
      input.ShardIteratorType === "LATEST"
        ? last + 1n
        : input.ShardIteratorType === "AT_SEQUENCE_NUMBER"
          ? BigInt(input.StartingSequenceNumber!)
          : input.ShardIteratorType === "AT_TIMESTAMP"
            ? (shard.records.find(({ at }) => at >= input.Timestamp!.getTime())?.number ?? last + 1n)
            : 0n;
    return { ShardIterator: `${this.era}:${shard.id}:${from}` };
  }

  private get({ input }: GetRecordsCommand) {
    const [era, id, from] = input.ShardIterator!.split(":");
    if (Number(era) !== this.era) throw new ExpiredIteratorException(METADATA);
    const shard = this.shards.find((one) => one.id === id)!;
    const left = shard.records.filter(({ number }) => number >= BigInt(from!));
    const records = left.slice(0, 5);
    const next = records.length === 0 ? BigInt(from!) : records.at(-1)!.number + 1n;
    const ended = shard.closed && left.length === records.length;
    return {
      Records: records.map(({ number, data, at }) => ({
        SequenceNumber: String(number),
        Data: data,
        ApproximateArrivalTimestamp: new Date(at),
      })),
      NextShardIterator: ended ? undefined : `${this.era}:${id}:${next}`,
      MillisBehindLatest:
        left.length > records.length ? Math.max(1, Date.now() - left[records.length]!.at) : 0,
    };
  }
}

export const throttled = () => new ProvisionedThroughputExceededException(METADATA);
