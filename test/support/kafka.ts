import { KafkaReader, type KafkaReaderOptions } from "../../services/stream/kafka/reader.js";
import type { BrokerSettings, TopicSettings } from "../../services/stream/kafka/settings.js";
import { KafkaWriter, type KafkaWriterOptions } from "../../services/stream/kafka/writer.js";
import type { KafkaCluster } from "../servers/kafka.js";

const MiB = 1024 * 1024;

/** A topic of 4 partitions as the defaults would have it. */
export const topicSettings = (topic: string, over: Partial<TopicSettings> = {}): TopicSettings => ({
  topic,
  partitions: 4,
  replicationFactor: 3,
  minInsyncReplicas: 2,
  retentionMs: 3_600_000,
  maxMessageBytes: 4 * MiB,
  maxEventBytes: 2 * MiB,
  allowFewReplicas: false,
  ...over,
});

export const brokerSettings = (cluster: Pick<KafkaCluster, "brokers">): BrokerSettings => ({
  brokers: cluster.brokers,
  clientId: "test",
});

/** Settings of a process whose streams lie there, without the replicas that production wants, as variables. */
export const onKafka = ({ brokers }: Pick<KafkaCluster, "brokers">): NodeJS.ProcessEnv => ({
  TRIBUTARY_STREAM__KIND: "kafka",
  TRIBUTARY_STREAM__KAFKA__BROKERS: brokers.join(","),
  TRIBUTARY_STREAM__KAFKA__ALLOW_FEW_REPLICAS: "true",
});

/** Events of tests are no envelopes: no keys. */
export const openKafkaWriter = (
  cluster: Pick<KafkaCluster, "brokers">,
  topic: string,
  over: Partial<TopicSettings> = {},
  options: Partial<KafkaWriterOptions> = {},
): Promise<KafkaWriter> =>
  KafkaWriter.open({
    brokers: brokerSettings(cluster),
    topic: topicSettings(topic, over),
    compression: "none",
    maxInFlightBytes: 64 * MiB,
    describe: () => undefined,
    ...options,
  });

export const openKafkaReader = (
  cluster: Pick<KafkaCluster, "brokers">,
  topic: string,
  over: Partial<TopicSettings> = {},
  options: Partial<KafkaReaderOptions> = {},
): Promise<KafkaReader> =>
  KafkaReader.open({ brokers: brokerSettings(cluster), topic: topicSettings(topic, over), ...options });
