import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe } from "vitest";
import { changeStreamContract } from "../contract/change-stream.js";
import { KafkaCluster, START_MS } from "../servers/kafka.js";
import { openKafkaReader, openKafkaWriter } from "../support/kafka.js";

describe.each([1, 3] as const)("Kafka, %d brokers", (nodes) => {
  let cluster: KafkaCluster;
  beforeAll(async () => {
    cluster = await KafkaCluster.start({ nodes });
  }, START_MS);
  afterAll(() => cluster?.stop());

  changeStreamContract(
    async () => {
      const topic = `contract-${randomBytes(4).toString("hex")}`;
      const few = nodes === 1;
      const open: { close(): Promise<void> }[] = [];
      const opened = <T extends { close(): Promise<void> }>(it: T): T => {
        open.push(it);
        return it;
      };
      return {
        openWriter: async () => opened(await openKafkaWriter(cluster, topic, { allowFewReplicas: few })),
        openReader: async () => opened(await openKafkaReader(cluster, topic, { allowFewReplicas: few })),
        retentionMs: 3_600_000,
        dispose: async () => {
          for (const it of open.reverse()) await it.close();
        },
      };
    },
    4 * 1024 * 1024,
  );
});
