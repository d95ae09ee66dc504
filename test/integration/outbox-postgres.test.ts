import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Pool, type PoolClient } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ProducerError } from "../../clients/producer/src/errors.js";
import type { ChangeEvent } from "../../clients/producer/src/event.js";
import { POSTGRES_OUTBOX_SQL, PostgresOutbox } from "../../clients/producer/src/postgres.js";
import { seededRandom } from "../../clients/producer/test/seeded-random.js";
import { packageRoot } from "../../services/base/paths.js";
import { ProtoRegistry } from "../../services/contracts/registry.js";
import { startPostgres } from "../servers/postgres.js";
import { freePort } from "../servers/tool.js";
import { readForeign } from "../support/foreign.js";
import { makeToken, removeFolder, Server, temporaryFolder, until, untilLanded } from "../support/stack.js";

const SEED = Number(process.env.TEST_SEED ?? Date.now() % 1_000_000);
const ROUNDS = Number(process.env.TEST_ROUNDS ?? 10);
const TYPE = "tracker.v1.Issue";
const LIMITS = { events: 100, bytes: 1_000_000 };

const issue = ProtoRegistry.load([join(packageRoot, "proto")]).codec(TYPE);
const encode = (key: string, summary: string): Buffer => Buffer.from(issue.encode({ key, summary }).finish());

let postgres: Awaited<ReturnType<typeof startPostgres>>;
let pool: Pool;
beforeAll(async () => {
  postgres = await startPostgres();
  pool = new Pool({ connectionString: postgres.url, max: 20 });
  pool.on("error", () => undefined);
  // Made again, it does no harm.
  await pool.query(POSTGRES_OUTBOX_SQL);
  await pool.query(POSTGRES_OUTBOX_SQL);
  await pool.query("create table issues (tenant text, key text, summary text, primary key (tenant, key))");
  await pool.query("create table history (tenant text, key text, version bigint, summary text)");
});
afterAll(async () => {
  await pool?.end();
  await postgres?.stop();
});

type Change = "created" | "updated" | "deleted";

/**
 * A change with its event, in the transaction of `client`. The event comes first, as that locks the entity; or after a
 * statement that did change the row, which locks it too; one way for all, or they lock each other out.
 */
async function change(
  client: PoolClient,
  tenant: string,
  key: string,
  kind: Change,
  summary: string,
  first = true,
) {
  const alter = () =>
    kind === "deleted"
      ? client.query("delete from issues where tenant = $1 and key = $2", [tenant, key])
      : client.query(
          "insert into issues values ($1, $2, $3) on conflict (tenant, key) do update set summary = $3",
          [tenant, key, summary],
        );
  if (!first && (await alter()).rowCount === 0) return;
  const payload = kind === "deleted" ? null : encode(key, summary);
  const { rows } = await client.query("select tributary_publish($1, $2, $3, $4, $5) as version", [
    tenant,
    TYPE,
    key,
    kind,
    payload,
  ]);
  if (first) await alter();
  const version = (rows[0] as { version: string }).version;
  const told = kind === "deleted" ? null : summary;
  await client.query("insert into history values ($1, $2, $3, $4)", [tenant, key, version, told]);
}

async function transaction(work: (client: PoolClient) => Promise<"commit" | "rollback">): Promise<void> {
  const client = await pool.connect();
  try {
    await client.query("begin");
    await client.query(await work(client));
  } finally {
    client.release();
  }
}

/** Changes entities of `tenant` until the signal, some in long transactions, some rolled back. */
async function write(
  tenant: string,
  first: boolean,
  random: () => number,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    await transaction(async (client) => {
      // In one order, as everybody who locks several rows does it.
      const keys = Array.from({ length: 1 + Math.floor(random() * 4) }, () => Math.floor(random() * 40));
      const fails = random() < 0.2;
      for (const key of [...new Set(keys)].sort((a, b) => a - b)) {
        const kind: Change = random() < 0.15 ? "deleted" : random() < 0.5 ? "created" : "updated";
        const summary = `${fails ? "never" : "said"} ${Math.floor(random() * 1e9)}`;
        await change(client, tenant, `K-${key}`, kind, summary, first);
        // Ids are taken in one order and committed in another.
        if (random() < 0.1) await sleep(random() * 60);
      }
      return fails ? "rollback" : "commit";
    });
  }
}

const waiting = async (): Promise<number> => {
  const { rows } = await pool.query("select count(*)::int as count from tributary_outbox");
  return (rows[0] as { count: number }).count;
};

describe("a loan", () => {
  const lent = (events: readonly ChangeEvent[]) =>
    events.map(({ entityId, version }) => `${entityId}@${version}`);
  const publishAll = (tenant: string, keys: readonly string[]) =>
    transaction(async (client) => {
      for (const key of keys) await change(client, tenant, key, "updated", "s");
      return "commit";
    });

  it("gives each entity's events in order to one borrower at a time, and again when they are kept", async () => {
    const outbox = new PostgresOutbox(pool);
    await publishAll("loan", ["A", "A", "A"]);
    const [first, second] = await Promise.all([
      outbox.lend(LIMITS, async (events) => {
        expect(lent(events)).toEqual(["A@1", "A@2", "A@3"]);
        expect(await outbox.lend(LIMITS, async () => [])).toBe(0);
        return ["delivered", "kept", "kept"];
      }),
      sleep(5),
    ]);
    expect([first, second]).toEqual([3, undefined]);
    const limits = { events: 1, bytes: 1 };
    for (const name of ["A@2", "A@3"]) {
      await outbox.lend(limits, async (events) => {
        expect(lent(events)).toEqual([name]);
        return ["delivered"];
      });
    }
    expect(await waiting()).toBe(0);
  });

  it("finds what commits late behind what was delivered already", async () => {
    const outbox = new PostgresOutbox(pool);
    const seen: string[] = [];
    const lendAll = async () => {
      while (
        (await outbox.lend(LIMITS, async (events) => {
          seen.push(...lent(events));
          return events.map(() => "delivered");
        })) > 0
      );
    };
    await transaction(async (late) => {
      await change(late, "late", "L", "created", "s");
      await publishAll("late", ["M", "N"]);
      await lendAll();
      return "commit";
    });
    expect(seen.sort()).toEqual(["M@1", "N@1"]);
    await lendAll();
    expect(seen.at(-1)).toBe("L@1");
  });

  it("of which something was refused for good goes on without it, and it can be queued again", async () => {
    const outbox = new PostgresOutbox(pool);
    await publishAll("refused", ["R", "R"]);
    const refusal = new ProducerError("TRB-EVENT-TENANT", "why", { refused: "event" });
    await outbox.lend(LIMITS, async () => [refusal, "delivered"]);
    expect(await waiting()).toBe(0);
    const { rows } = await pool.query("select id, version, code, message from tributary_outbox_rejected");
    expect(rows).toMatchObject([{ version: "1", code: "TRB-EVENT-TENANT", message: "why" }]);
    const requeue = async () => {
      const { id } = rows[0] as { id: string };
      return (await pool.query("select tributary_requeue($1) as back", [id])).rows;
    };
    expect(await requeue()).toEqual([{ back: true }]);
    expect(await requeue()).toEqual([{ back: false }]);
    expect(await outbox.lend(LIMITS, async () => ["delivered"])).toBe(1);
  });

  it("is ended by the server when its borrower is frozen, and somebody else gets the events", async () => {
    const outbox = new PostgresOutbox(pool, { patienceMs: 200 });
    await publishAll("frozen", ["F"]);
    const frozen = outbox.lend(LIMITS, async () => {
      await sleep(700);
      return ["delivered"];
    });
    const failed = expect(frozen).rejects.toThrow();
    await sleep(400);
    expect(await outbox.lend(LIMITS, async () => ["delivered"])).toBe(1);
    await failed;
    expect(await waiting()).toBe(0);
  });

  it("keeps occurred_at to the microsecond, and attributes", async () => {
    const outbox = new PostgresOutbox(pool);
    const sql = `select tributary_publish('t', $1, 'T', 'updated', $2, '1969-12-31 23:59:59.123456Z', '{"a": "b"}', 'e')`;
    await pool.query(sql, [TYPE, encode("T", "s")]);
    await outbox.lend(LIMITS, async (events) => {
      const expected = {
        occurredAt: { seconds: -1n, nanos: 123_456_000 },
        attributes: { a: "b" },
        eventId: "e",
      };
      expect(events).toMatchObject([expected]);
      return ["delivered"];
    });
  });
});

describe(`kill -9 of relays and of the bus under load (${ROUNDS} rounds, seed ${SEED})`, () => {
  it("loses no event, invents none, and keeps each entity's order", async () => {
    const data = await temporaryFolder();
    const token = await makeToken(data, "producer");
    const port = await freePort();
    const startBus = () => Server.start("bus", data, {}, port);
    const url = `http://127.0.0.1:${port}`;
    const relays: ChildProcess[] = [];
    let said = "";
    const startRelay = (i: number) => {
      const script = join(packageRoot, "test", "support", "outbox-relay.mjs");
      const args = [script, url, token, "postgres", postgres.url];
      const relay = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
      relay.stderr.on("data", (bytes: Buffer) => (said += bytes.toString()));
      relays[i] = relay;
    };
    const killRelay = async (i: number) => {
      const relay = relays[i]!;
      const ended = once(relay, "exit");
      if (relay.exitCode === null && relay.kill("SIGKILL")) await ended;
    };
    const ingest = await Server.start("ingest", data);
    let bus = await startBus();
    try {
      for (const i of [0, 1]) startRelay(i);
      for (let round = 0; round < ROUNDS; round++) {
        const random = seededRandom(SEED + round);
        const stop = new AbortController();
        const writers = [1, 2, 3, 4].map((n) =>
          write(`round-${round}`, round % 2 === 0, seededRandom(SEED + round + n * 1e6), stop.signal),
        );
        for (let faults = 0; faults < 3; faults++) {
          await sleep(100 + random() * 400);
          const which = Math.floor(random() * 3);
          if (which < 2) {
            await killRelay(which);
            startRelay(which);
          } else {
            await bus.kill();
            await sleep(random() * 300);
            bus = await startBus();
          }
        }
        stop.abort();
        await Promise.all(writers);
      }
      await until("the outbox to be empty", async () => (await waiting()) === 0, 120);
      for (const relay of relays) {
        const ended = once(relay, "exit");
        relay.kill("SIGTERM");
        expect(await ended).toEqual([0, null]);
      }
      expect(said).toBe("");
      await untilLanded(data);
      await check(data);
    } finally {
      for (const i of [0, 1]) await killRelay(i);
      await bus.stop();
      await ingest.stop();
    }
    await removeFolder(data);
  });
});

interface Told {
  readonly tenant: string;
  readonly key: string;
  readonly version: string;
  readonly summary: string | null;
}

async function check(data: string): Promise<void> {
  const { rows: history } = await pool.query(
    "select tenant, key, version::text, summary from history where tenant like 'round-%'",
  );
  const said = new Map((history as Told[]).map((row) => [`${row.tenant}/${row.key}@${row.version}`, row]));
  expect(said.size).toBeGreaterThan(ROUNDS * 20);

  const raw = await readForeign(join(data, "lake", "raw", TYPE));
  raw.sort((a, b) => Number(a.position) - Number(b.position));
  const found = new Set<string>();
  const last = new Map<string, number>();
  for (const { tenant_id, entity_id, version, payload } of raw) {
    const entity = `${tenant_id}/${entity_id}`;
    const name = `${entity}@${version}`;
    const told = said.get(name);
    expect(told, `${name} was never committed (seed ${SEED})`).toBeDefined();
    const bytes = told!.summary === null ? null : encode(told!.key, told!.summary).toString("hex");
    expect(payload, name).toBe(bytes);
    if (found.has(name)) continue;
    found.add(name);
    // Entities stay in one partition, whose positions grow.
    expect(Number(version), `${entity} skipped one (seed ${SEED})`).toBe((last.get(entity) ?? 0) + 1);
    last.set(entity, Number(version));
  }
  expect([...said.keys()].filter((name) => !found.has(name))).toEqual([]);

  const { rows: issues } = await pool.query(
    "select tenant, key, summary from issues where tenant like 'round-%'",
  );
  const lines = (rows: readonly Record<string, unknown>[], names: readonly string[]) =>
    rows.map((row) => names.map((name) => String(row[name])).join(" ")).sort();
  const refined = await readForeign(join(data, "lake", "refined", "tracker", "issues"));
  expect(lines(refined, ["tenant_id", "key", "summary"])).toEqual(
    lines(issues, ["tenant", "key", "summary"]),
  );
}
