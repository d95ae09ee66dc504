// A relay in a process of its own, to be killed. Arguments: URL of the bus, token, postgres or dynamodb, its URL.
import { OutboxRelay, Producer } from "../../dist/clients/producer/src/index.js";

const [url, token, kind, database] = process.argv.slice(2);
const { outbox, close } = kind === "postgres" ? await postgres() : await dynamodb();
const producer = new Producer({ url, token, deadlineMs: 3_000, silenceMs: 2_000 });
const relay = new OutboxRelay({
  outbox,
  producer,
  idleMs: 20,
  onRejected: (event, error) => console.error(`rejected ${event.entityId}: ${error.code} ${error.message}`),
});
const stop = new AbortController();
process.once("SIGTERM", () => stop.abort());
await relay.run(stop.signal);
await producer.close();
await close();

async function postgres() {
  const { default: pg } = await import("pg");
  const { PostgresOutbox } = await import("../../dist/clients/producer/src/postgres.js");
  const pool = new pg.Pool({ connectionString: database });
  pool.on("error", () => undefined);
  return { outbox: new PostgresOutbox(pool), close: () => pool.end() };
}

async function dynamodb() {
  const { DynamoDBClient } = await import("@aws-sdk/client-dynamodb");
  const { DynamoOutbox } = await import("../../dist/clients/producer/src/dynamodb.js");
  const credentials = { accessKeyId: "test", secretAccessKey: "test" };
  const client = new DynamoDBClient({ endpoint: database, region: "us-east-1", credentials });
  return {
    outbox: new DynamoOutbox({ client, table: "outbox", leaseMs: 1_000 }),
    close: () => client.destroy(),
  };
}
