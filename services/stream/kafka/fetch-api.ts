import { createAPI, fetchV13, Reader } from "@platformatic/kafka";
import type { FetchedPartition } from "./window.js";

export interface FetchAnswer {
  readonly throttleMs: number;
  readonly errorCode: number;
  readonly partitions: readonly FetchedPartition[];
}

export interface FetchOrder {
  /** Of the topic, so that one made anew under the same name is not read on in. */
  readonly topicId: string;
  readonly waitMs: number;
  readonly maxBytes: number;
  readonly maxPartitionBytes: number;
  readonly from: ReadonlyMap<number, number>;
}

const READ_COMMITTED = 1;
/** No session: each request says all there is to say. */
const SESSIONLESS = -1;

function createRequest(order: FetchOrder) {
  const partitions = [...order.from].map(([partition, offset]) => ({
    partition,
    currentLeaderEpoch: -1,
    fetchOffset: BigInt(offset),
    lastFetchedEpoch: -1,
    partitionMaxBytes: order.maxPartitionBytes,
  }));
  return fetchV13.createRequest(
    order.waitMs,
    1,
    order.maxBytes,
    READ_COMMITTED,
    0,
    SESSIONLESS,
    [{ topicId: order.topicId, partitions }],
    [],
    "",
  );
}

/** Fetch (version 13), with records left as they came: the client's own parser makes an object of each. */
function parseResponse(_correlation: number, _key: number, _version: number, response: Reader): FetchAnswer {
  // In one piece, so that events can be slices of it.
  const whole = response.buffer.slice(response.position);
  const reader = Reader.from(whole);
  const throttleMs = reader.readInt32();
  const errorCode = reader.readInt16();
  reader.skip(4);
  const partitions: FetchedPartition[] = [];
  reader.readArray((topic) => {
    topic.readUUID();
    topic.readArray((r) => {
      const index = r.readInt32();
      const code = r.readInt16();
      const highWatermark = Number(r.readInt64());
      r.skip(8);
      const logStart = Number(r.readInt64());
      const aborted =
        r.readNullableArray((a) => ({ producer: a.readInt64(), first: Number(a.readInt64()) })) ?? [];
      r.skip(4);
      const length = Math.max(0, r.readUnsignedVarInt() - 1);
      const records = whole.subarray(r.position, r.position + length);
      r.skip(length);
      aborted.sort((a, b) => a.first - b.first);
      partitions.push({ index, errorCode: code, highWatermark, logStart, aborted, records });
    });
  });
  return { throttleMs, errorCode, partitions };
}

export const fetchApi = createAPI<[FetchOrder], FetchAnswer>(1, 13, createRequest, parseResponse);
