import { createAPI, initProducerIdV4, produceV9, Writer } from "@platformatic/kafka";
import type { Brokers } from "./brokers.js";
import { checkCode } from "./failures.js";
import type { ProducerIdentity } from "./record-batch.js";

export interface ProduceOrder {
  readonly topic: string;
  /** How long the leader may wait for the other replicas. */
  readonly timeoutMs: number;
  readonly batches: readonly { readonly partition: number; readonly bytes: Buffer }[];
}

const ALL_REPLICAS = -1;

/** Produce (version 9) of batches that are finished: the client's own encoder wants an object for each message. */
function createRequest({ topic, timeoutMs, batches }: ProduceOrder): Writer {
  return Writer.create()
    .appendString(null)
    .appendInt16(ALL_REPLICAS)
    .appendInt32(timeoutMs)
    .appendArray([topic], (writer, name) => {
      writer.appendString(name).appendArray([...batches], (w, { partition, bytes }) => {
        w.appendInt32(partition)
          .appendUnsignedVarInt(bytes.length + 1)
          .append(bytes);
      });
    })
    .appendTaggedFields();
}

export const produceApi = createAPI<[ProduceOrder], produceV9.ProduceResponse>(
  0,
  9,
  createRequest,
  produceV9.parseResponse,
);

/** An identity of its own, under which the brokers tell a batch that is sent again from a new one. Errors: Unanswered, Refused. */
export async function newIdentity(brokers: Brokers): Promise<ProducerIdentity> {
  const response = await brokers.call("any", "control", initProducerIdV4.api, [null, 60_000, -1n, -1]);
  checkCode("init producer id", response.errorCode);
  return { id: response.producerId, epoch: response.producerEpoch };
}
