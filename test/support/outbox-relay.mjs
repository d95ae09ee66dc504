// A relay in a process of its own, to be killed. Arguments: URL of the bus, token, URL of the database.
import pg from "pg";
import { OutboxRelay, Producer } from "../../dist/clients/producer/src/index.js";
import { PostgresOutbox } from "../../dist/clients/producer/src/postgres.js";

const [url, token, database] = process.argv.slice(2);
const pool = new pg.Pool({ connectionString: database });
pool.on("error", () => undefined);
const producer = new Producer({ url, token, deadlineMs: 3_000, silenceMs: 2_000 });
const relay = new OutboxRelay({
  outbox: new PostgresOutbox(pool),
  producer,
  idleMs: 20,
  onRejected: (event, error) => console.error(`rejected ${event.entityId}: ${error.code} ${error.message}`),
});
const stop = new AbortController();
process.once("SIGTERM", () => stop.abort());
await relay.run(stop.signal);
await producer.close();
await pool.end();
