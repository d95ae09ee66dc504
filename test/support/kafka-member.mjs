// A member of a consumer group as a process, so that it can be killed and frozen: tells its parent what it reads, and
// commits it some while later. Needs dist/.
import { KafkaReader } from "../../dist/services/stream/kafka/reader.js";

const { brokers, topic, times, landMs } = JSON.parse(process.argv[2]);
const reader = await KafkaReader.open({ brokers, topic, times });
const consumer = await reader.consume("ingest", {
  assigned: (partitions) => process.send({ assigned: partitions.map(({ name }) => name) }),
  revoked: async (names) => process.send({ revoked: names }),
});
process.on("disconnect", () => process.exit(0));
for (;;) {
  const batch = await consumer.read({ maxEvents: 200, maxBytes: 1024 * 1024, waitMs: 200 });
  if (batch === undefined) continue;
  const end = new Map();
  const read = batch.positions.map((position, i) => {
    const partition = batch.names[batch.partitions[i]];
    end.set(partition, position);
    return { partition, position };
  });
  process.send({ read });
  setTimeout(() => consumer.commit(end).catch(() => undefined), landMs);
}
