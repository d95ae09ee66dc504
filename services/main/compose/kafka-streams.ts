import { readFileSync } from "node:fs";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { ENVELOPE_BYTES } from "../../bus/event-gate.js";
import { EventFactsReader } from "../../contracts/event-facts.js";
import { domainOf } from "../../stream/domains.js";
import { KafkaReader } from "../../stream/kafka/reader.js";
import type { BrokerSettings, TopicSettings } from "../../stream/kafka/settings.js";
import { KafkaWriter } from "../../stream/kafka/writer.js";
import type { StreamKind } from "./streams.js";

/** What a record has beside its event. */
const RECORD_BYTES = 4 * 1024;

/** A topic for each domain, unless the configuration has one for all. Errors: TRB-CONFIG. */
export function kafkaStreams(config: Config): StreamKind {
  const { kafka, partitions } = config.stream;
  const brokers = brokerSettings(kafka);
  const topic = (name: string): TopicSettings => ({
    topic: name,
    partitions,
    replicationFactor: kafka.replicationFactor,
    minInsyncReplicas: kafka.minInsyncReplicas,
    retentionMs: kafka.retentionMs,
    maxMessageBytes: kafka.maxMessageBytes,
    maxEventBytes: config.bus.maxPayloadBytes + ENVELOPE_BYTES + RECORD_BYTES,
    allowFewReplicas: kafka.allowFewReplicas,
  });
  const facts = new EventFactsReader();
  return {
    nameOf: (entityType) => {
      const domain = domainOf(entityType);
      return kafka.topic ?? kafka.topics[domain] ?? `${kafka.topicPrefix}${domain}`;
    },
    writer: (name) =>
      KafkaWriter.open({
        brokers,
        topic: topic(name),
        compression: kafka.compression,
        maxInFlightBytes: kafka.maxInFlightBytes,
        describe: (bytes, start, end) => facts.facts(bytes, start, end),
      }),
    reader: (name) => {
      const times = { sessionMs: kafka.sessionMs, heartbeatMs: Math.min(500, kafka.sessionMs / 5) };
      return KafkaReader.open({ brokers, topic: topic(name), times });
    },
  };
}

type KafkaConfig = Config["stream"]["kafka"];

function brokerSettings({ brokers, clientId, tls, sasl }: KafkaConfig): BrokerSettings {
  return {
    brokers,
    clientId,
    ...(tls?.enabled === true
      ? {
          tls: {
            ...given("ca", "tls.caFile", tls.caFile),
            ...given("cert", "tls.certFile", tls.certFile),
            ...given("key", "tls.keyFile", tls.keyFile),
            ...(tls.serverName === undefined ? {} : { serverName: tls.serverName }),
          },
        }
      : {}),
    ...(sasl === undefined
      ? {}
      : {
          sasl: {
            mechanism: sasl.mechanism,
            username: sasl.username,
            password: sasl.password ?? fileOf("sasl.passwordFile", sasl.passwordFile!).trimEnd(),
          },
        }),
  };
}

const given = <Name extends string>(name: Name, setting: string, file: string | undefined) =>
  (file === undefined ? {} : { [name]: fileOf(setting, file) }) as { [K in Name]?: string };

/** Errors: TRB-CONFIG, naming the setting. */
function fileOf(setting: string, file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new TributaryError("TRB-CONFIG", `stream.kafka.${setting}: expected a readable file`, { cause });
  }
}
