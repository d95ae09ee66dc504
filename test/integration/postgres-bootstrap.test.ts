import { type ChildProcess, execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { gunzipSync } from "node:zlib";
import { Pool, type PoolClient } from "pg";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { POSTGRES_OUTBOX_SQL } from "../../clients/producer/src/postgres.js";
import { seededRandom } from "../../clients/producer/test/seeded-random.js";
import { packageRoot } from "../../services/base/paths.js";
import { ProtoRegistry } from "../../services/contracts/registry.js";
import { startPostgres } from "../servers/postgres.js";
import { freePort } from "../servers/tool.js";
import { readForeign } from "../support/foreign.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

/** A table that grew for years joins the lake while it is written to: export, outbox, bootstrap, hand-over. */

const SEED = Number(process.env.TEST_SEED ?? Date.now() % 1_000_000);
/** TEST_ROUNDS=20 for the whole of it; TEST_SEED repeats them. */
const ROUNDS = Number(process.env.TEST_ROUNDS ?? 1);
const TYPE = "tracker.v1.Issue";
const EXPORTER = join(packageRoot, "examples", "postgres-export", "export.mjs");
const RELAY = join(packageRoot, "test", "support", "outbox-relay.mjs");
const TENANTS = ["acme", "b.x"];
/** Rows of each tenant from before there was an outbox. */
const OLD = 1_000;

const run = promisify(execFile);
const issue = ProtoRegistry.load([join(packageRoot, "proto")]).codec(TYPE);

let postgres: Awaited<ReturnType<typeof startPostgres>>;
let pool: Pool;
let exports: string;
beforeAll(async () => {
  postgres = await startPostgres();
  pool = new Pool({ connectionString: postgres.url, max: 20 });
  pool.on("error", () => undefined);
  await pool.query(POSTGRES_OUTBOX_SQL);
  await pool.query(`create table issues (tenant text, key text, summary text, description text,
    time_spent_seconds bigint, story_points float8, labels text[], created_at timestamptz, due_at timestamptz,
    primary key (tenant, key))`);
  exports = mkdtempSync(join(tmpdir(), "tributary-exports-"));
});
afterAll(async () => {
  await pool?.end();
  await postgres?.stop();
  rmSync(exports, { recursive: true, force: true });
});
beforeEach(async () => {
  await pool.query("truncate issues, tributary_outbox, tributary_outbox_versions, tributary_outbox_rejected");
});

const exporterArgs = (out: string, more: readonly string[] = []): string[] => [
  EXPORTER,
  ...["--table", "issues", "--type", TYPE, "--tenant", "t.tenant", "--id", "t.key", "--out", out],
  ...more,
];
const exporterEnv = () => ({ ...process.env, DATABASE_URL: postgres.url });
const exported = (out: string, ...more: readonly string[]) =>
  run(process.execPath, exporterArgs(out, more), { env: exporterEnv() });

type Line = Readonly<Record<string, unknown>>;
const linesOf = (out: string): Line[] =>
  readdirSync(out)
    .filter((name) => name.startsWith("part-"))
    .sort()
    .flatMap((name) =>
      gunzipSync(readFileSync(join(out, name)))
        .toString()
        .split("\n"),
    )
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Line);

const oldRows = () =>
  pool.query(
    `insert into issues select tenant, 'K-' || n, 'old ' || n, repeat(md5(n::text), 40), 9007199254740993 + n, n / 7.0,
       array['a"b', 'é', 'n' || n], '2001-02-03 04:05:06.123456Z'::timestamptz + n * interval '1 day', null
     from unnest($1::text[]) tenant, generate_series(1, $2::int) n`,
    [TENANTS, OLD],
  );

describe("the exporter", () => {
  it("tells values exactly, the outbox's versions, and 0 where an entity has had no event", async () => {
    await oldRows();
    await pool.query("select tributary_publish('acme', $1, 'K-7', 'updated', '')", [TYPE]);
    await pool.query("select tributary_publish('acme', $1, 'K-7', 'updated', '')", [TYPE]);
    await pool.query("update issues set due_at = '1969-12-31 23:59:59.999999Z' where key = 'K-7'");
    const out = join(exports, "exact");
    const { stdout } = await exported(out, "--part-mb", "1", "--jobs", "3");
    const lines = linesOf(out);
    expect(JSON.parse(stdout)).toEqual({ out, rows: 2 * OLD, parts: 4 });
    expect(new Set(lines.map(({ tenant, key }) => `${tenant} ${key}`)).size).toBe(2 * OLD);
    const version = ({ tributary_version }: Line) => tributary_version;
    expect(lines.filter((line) => version(line) !== "0").map(version)).toEqual(["2"]);
    const seven = lines.find(({ tenant, key }) => tenant === "acme" && key === "K-7")!;
    expect(seven).toMatchObject({
      tributary_tenant: "acme",
      tributary_id: "K-7",
      summary: "old 7",
      time_spent_seconds: "9007199254741000",
      story_points: 1,
      labels: ['a"b', "é", "n7"],
      created_at: "2001-02-10T04:05:06.123456Z",
      due_at: "1969-12-31T23:59:59.999999Z",
    });
    const manifest = JSON.parse(readFileSync(join(out, "_manifest.json"), "utf8")) as {
      readonly parts: readonly { readonly path: string; readonly rows: number; readonly sha256: string }[];
      readonly watermark: { readonly outbox: { readonly last: string; readonly waiting: number } };
    };
    expect(manifest).toMatchObject({ table: "issues", type: TYPE, rows: 2 * OLD });
    expect(manifest.watermark.outbox.waiting).toBe(2);
    for (const { path, sha256 } of manifest.parts) {
      expect(
        createHash("sha256")
          .update(readFileSync(join(out, path)))
          .digest("hex"),
      ).toBe(sha256);
    }
  });

  it("writes where nothing is, alone, and leaves nothing behind that looks like an export", async () => {
    await oldRows();
    const out = join(exports, "alone");
    const [one, two] = await Promise.allSettled([exported(out), exported(out)]);
    // One was done before the other began, or holds it off.
    expect([one.status, two.status].sort()).toEqual(["fulfilled", "rejected"]);
    await expect(exported(out)).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining("--out") });
    await expect(
      exported(join(exports, "none"), "--where", "1 / 0 = t.time_spent_seconds"),
    ).rejects.toThrow();
    expect(readdirSync(exports).filter((name) => name.includes("none"))).toEqual([]);
    await expect(
      run(process.execPath, exporterArgs(join(exports, "none")).with(2, "nowhere"), { env: exporterEnv() }),
    ).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining("--table") });
  });

  it("exports what was there at one moment, whatever is written meanwhile", async () => {
    await oldRows();
    const stop = new AbortController();
    // Each transaction moves a row of one tenant to the other: their sum stays.
    const moving = (async () => {
      for (let n = 1; !stop.signal.aborted; n++) {
        const [from, to] = n % 2 === 0 ? TENANTS : [...TENANTS].reverse();
        await transaction(async (client) => {
          const key = `K-${1 + (n % OLD)}`;
          await client.query(
            "update issues set story_points = story_points - 1 where (tenant, key) = ($1, $2)",
            [from, key],
          );
          await client.query(
            "update issues set story_points = story_points + 1 where (tenant, key) = ($1, $2)",
            [to, key],
          );
        });
      }
    })();
    const sum = (OLD * (OLD + 1)) / 7;
    for (let n = 0; n < 3; n++) {
      const out = join(exports, `moment-${n}`);
      await exported(out, "--part-mb", "1");
      const lines = linesOf(out);
      expect(lines.length).toBe(2 * OLD);
      expect(lines.reduce((all, { story_points }) => all + Number(story_points), 0)).toBeCloseTo(sum, 3);
    }
    stop.abort();
    await moving;
  });
});

async function transaction(work: (client: PoolClient) => Promise<void>): Promise<void> {
  const client = await pool.connect();
  try {
    await client.query("begin");
    await work(client);
    await client.query("commit");
  } catch (error) {
    await client.query("rollback");
    throw error;
  } finally {
    client.release();
  }
}

/** Changes entities of a tenant until the signal, each with its event in the same transaction. */
async function write(tenant: string, random: () => number, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    await transaction(async (client) => {
      // In one order, as everybody who locks several rows does it. Some are new.
      const keys = Array.from(
        { length: 1 + Math.floor(random() * 4) },
        () => 1 + Math.floor(random() * OLD * 1.1),
      );
      for (const n of [...new Set(keys)].sort((a, b) => a - b))
        await change(client, tenant, `K-${n}`, random);
    });
    // What else runs on two cores has to get on, too.
    await sleep(20);
  }
}

async function change(client: PoolClient, tenant: string, key: string, random: () => number): Promise<void> {
  const gone = random() < 0.2;
  const nanos = Math.floor(random() * 1e6) * 1000;
  const seconds = 1_500_000_000 + Math.floor(random() * 1e8);
  const told = {
    key,
    summary: `said ${random()}`,
    time_spent_seconds: Math.floor(random() * 1e9),
    labels: ["x"],
  };
  const payload = gone
    ? null
    : Buffer.from(issue.encode(issue.fromObject({ ...told, created_at: { seconds, nanos } })).finish());
  const kind = gone ? "deleted" : "updated";
  await client.query("select tributary_publish($1, $2, $3, $4, $5)", [tenant, TYPE, key, kind, payload]);
  if (gone) await client.query("delete from issues where (tenant, key) = ($1, $2)", [tenant, key]);
  else {
    await client.query(
      `insert into issues values ($1, $2, $3, null, $4, null, array['x'], $5, null) on conflict (tenant, key) do update
       set (summary, description, time_spent_seconds, story_points, labels, created_at, due_at) =
         (excluded.summary, null, excluded.time_spent_seconds, null, excluded.labels, excluded.created_at, null)`,
      [tenant, key, told.summary, told.time_spent_seconds, microsecondsText(seconds, nanos)],
    );
  }
  if (random() < 0.05) await sleep(random() * 30);
}

const microsecondsText = (seconds: number, nanos: number): string =>
  `${new Date(seconds * 1000).toISOString().slice(0, 19)}.${String(nanos / 1000).padStart(6, "0")}Z`;

const digestOf = (rows: readonly Line[]): string => {
  const names = ["tenant", "key", "summary", "description", "spent", "points", "labels", "created", "due"];
  const lines = rows.map((row) => JSON.stringify(names.map((name) => row[name] ?? null))).sort();
  return `${lines.length} ${createHash("sha256").update(lines.join("\n")).digest("hex")}`;
};
const time = (column: string) =>
  `to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') || '+00:00'`;

async function digestOfDatabase(): Promise<string> {
  const { rows } = await pool.query(`select tenant, key, summary, coalesce(description, '') as description,
    time_spent_seconds::text as spent, story_points as points, labels, ${time("created_at")} as created,
    ${time("due_at")} as due from issues`);
  return digestOf(rows as Line[]);
}

async function digestOfLake(data: string): Promise<string> {
  const sql = `select tenant_id as tenant, key, summary, description, time_spent_seconds as spent,
    story_points as points, labels, created_at as created, due_at as due from t`;
  return digestOf(await readForeign(join(data, "lake", "refined", "tracker", "issues"), sql));
}

/** Processes that `pid` has started, and those that they have. */
function childrenOf(pid: number): number[] {
  try {
    const own = readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1")
      .split(" ")
      .filter(Boolean)
      .map(Number);
    return own.flatMap((child) => [child, ...childrenOf(child)]);
  } catch {
    return [];
  }
}

async function killed(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}

it.each(Array.from({ length: ROUNDS }, (_, round) => SEED + round))(
  "an export, the outbox and a bootstrap, all of them killed: the lake is the database (seed %i)",
  (seed) => handOver(seed),
);

async function handOver(seed: number): Promise<void> {
  const [words, name] = [`seed ${seed}`, `round-${seed}`];
  const random = seededRandom(seed);
  const data = await temporaryFolder();
  const env = { TRIBUTARY_BULK__SOURCES__EXPORTS: exports };
  const token = await makeToken(data, "producer");
  const port = await freePort();
  await oldRows();
  let relay: ChildProcess | undefined;
  const startRelay = () => {
    const args = [RELAY, `http://127.0.0.1:${port}`, token, "postgres", postgres.url];
    relay = spawn(process.execPath, args, { stdio: "ignore" });
  };
  const startBus = () => Server.start("bus", data, env, port);
  const startIngest = () => Server.start("ingest", data, env);
  let [bus, ingest] = await Promise.all([startBus(), startIngest()]);
  const stop = new AbortController();
  const writing = TENANTS.map((tenant, n) => write(tenant, seededRandom(random() * 1e9 + n), stop.signal));
  try {
    // The relay may begin before the export, beside it or behind it.
    const begins = random();
    if (begins < 0.4) startRelay();
    const out = join(exports, name);
    for (let kills = Math.floor(random() * 3); !existsSync(out); kills--) {
      const exporter = spawn(process.execPath, exporterArgs(out, ["--part-mb", "1"]), {
        env: exporterEnv(),
        stdio: ["ignore", "ignore", "inherit"],
      });
      const ended = once(exporter, "exit");
      if (kills > 0) {
        await sleep(50 + random() * 500);
        await killed(exporter);
      }
      await ended;
    }
    if (begins >= 0.4 && begins < 0.7) startRelay();
    const mapping = ["--mapping", join(out, "_mapping.json"), "--type", TYPE];
    const started = await cli(
      [
        "bootstrap",
        "start",
        "--data",
        data,
        "--id",
        name,
        "--source",
        `exports/${name}`,
        ...mapping,
        "--detach",
        "--json",
      ],
      env,
    );
    expect(started.code, started.stderr).toBe(0);
    if (begins >= 0.7) startRelay();
    const ends = performance.now() + 400_000;
    for (let kills = 3; ; kills--) {
      if (kills > 0) {
        await sleep(random() * 1_500);
        const which = random();
        if (which < 0.25) {
          await killed(relay!);
          startRelay();
        } else if (which < 0.4) {
          await bus.kill();
          bus = await startBus();
        } else if (which < 0.6) {
          await ingest.kill();
          ingest = await startIngest();
        } else {
          // The job, what makes its chunks, or another child of ingest.
          const children = childrenOf(ingest.process.pid!);
          const one = children[Math.floor(random() * children.length)];
          if (one !== undefined) process.kill(one, "SIGKILL");
        }
        continue;
      }
      const { stdout, stderr } = await cli(["bootstrap", "status", name, "--data", data, "--json"], env);
      const { state } = JSON.parse(stdout) as { state: { phase: string; rejected: number; code?: string } };
      expect(
        ["waiting", "checking", "landing", "refining", "verifying", "done"],
        `${words}: ${stdout} ${stderr}`,
      ).toContain(state.phase);
      if (state.phase === "done") {
        expect(state.rejected, words).toBe(0);
        break;
      }
      if (performance.now() > ends) throw new Error(`the job does not end: ${stdout} (${words})`);
      await sleep(300);
    }
    // Live changes go on beyond the hand-over.
    await sleep(300);
    stop.abort();
    await Promise.all(writing);
    await until(
      `the outbox to be empty (${words})`,
      async () => (await pool.query("select from tributary_outbox")).rows.length === 0,
      120,
    );
    await untilLanded(data, 120, env);
    expect((await pool.query("select from tributary_outbox_rejected")).rows).toEqual([]);
    expect(await digestOfLake(data), words).toBe(await digestOfDatabase());
  } finally {
    stop.abort();
    await Promise.all(writing);
    if (relay !== undefined) await killed(relay);
    await Promise.all([bus.stop(), ingest.stop()]);
  }
  await removeFolder(data);
}
