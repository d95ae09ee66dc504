import { setTimeout as sleep } from "node:timers/promises";
import { KafkaCluster } from "../servers/kafka.js";
import { LEASE_MS, workersSuite } from "../support/workers-suite.js";

workersSuite("Kafka", "a broker dies", async () => {
  const kafka = await KafkaCluster.start({ nodes: 3 });
  return {
    stop: () => kafka.stop(),
    round: async (seed, random) => ({
      env: {
        TRIBUTARY_STREAM__KIND: "kafka",
        TRIBUTARY_STREAM__PARTITIONS: "8",
        TRIBUTARY_STREAM__KAFKA__BROKERS: kafka.brokers.join(","),
        TRIBUTARY_STREAM__KAFKA__TOPIC_PREFIX: `r${seed}-`,
        TRIBUTARY_STREAM__KAFKA__SESSION_MS: String(LEASE_MS),
      },
      shake: async () => {
        const node = random.below(3);
        await kafka.signal(node, "SIGKILL");
        await sleep(random.below(3_000));
        await kafka.startNode(node);
      },
      dispose: async () => undefined,
    }),
  };
});
