import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { cli, makeToken, removeFolder, Server, temporaryFolder, until } from "../support/stack.js";

/**
 * I12 against real processes: beside tables that are damaged in every way we know, a full scratch disk, a model that
 * fails on every row and a poison that asks for 100 GB, healthy types publish, land and answer as before; then each is
 * repaired by what its message says. CONTAINMENT_SECONDS (default 15) is how long the faults are watched.
 */
const SECONDS = Number(process.env.CONTAINMENT_SECONDS ?? 15);
const QUIET_SECONDS = Math.min(SECONDS, 30);
/** Beside a machine that is busy with other things a ratio of small times needs some room. */
const SLACK_MS = 150;

/** Type → the SQL of its value column. */
const TYPES = {
  Well: "payload.name",
  Fine: "upper(payload.name)",
  TornRaw: "payload.name",
  TornRefined: "payload.name",
  LostCheckpoint: "payload.name",
  LostFile: "payload.name",
  Throws: "cast(payload.name as integer)::varchar",
  Huge: "repeat(payload.name, payload.amount)",
} as const;
type Type = keyof typeof TYPES;
const HEALTHY: readonly Type[] = ["Well", "Fine"];
const HUGE = 100_000_000_000;
/** Nobody has these rows: they are dead letters. */
const NO_ROWS: readonly Type[] = ["Throws"];

const table = (type: Type) => `t.${type.toLowerCase()}`;

let folder: string;
let data: string;
let env: NodeJS.ProcessEnv;
let server: Server;
let producer: string;
let analyst: string;
let mounted = false;
const published = new Map<Type, number>();

function writeProject(): void {
  const proto = join(folder, "proto", "t", "v1");
  const models = join(folder, "transforms", "models", "t");
  for (const path of [proto, models]) mkdirSync(path, { recursive: true });
  const types = Object.keys(TYPES) as Type[];
  const messages = types.map((type) => `message ${type} { string name = 1; int64 amount = 2; }`);
  writeFileSync(join(proto, "t.proto"), `syntax = "proto3";\npackage t.v1;\n${messages.join("\n")}\n`);
  writeFileSync(join(folder, "transforms", "dbt_project.yml"), "name: t\nversion: '1'\nprofile: t\n");
  writeFileSync(
    join(models, "..", "sources.yml"),
    `version: 2\nsources:\n  - name: raw\n    tables: [${types.map((type) => `{ name: t.v1.${type} }`).join(", ")}]\n`,
  );
  for (const type of types) {
    writeFileSync(
      join(models, `${type.toLowerCase()}.sql`),
      `{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}
select tenant_id, entity_id, version, ${TYPES[type]} as value from {{ source('raw', 't.v1.${type}') }}\n`,
    );
  }
}

async function post(path: string, token: string, body: unknown): Promise<Response> {
  return fetch(server.url + path, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
}

/** Publishes the type's next entity. */
async function publish(type: Type, amount = 1): Promise<number> {
  const number = (published.get(type) ?? 0) + 1;
  const event = {
    tenantId: "acme",
    entityType: `t.v1.${type}`,
    entityId: String(number),
    operation: "OPERATION_CREATED",
    version: "1",
    payload: { "@type": `type.googleapis.com/t.v1.${type}`, name: "x", amount: String(amount) },
  };
  const response = await post("/v1/events", producer, [event]);
  expect(await response.json(), type).toMatchObject({ accepted: 1 });
  published.set(type, number);
  return number;
}

async function count(type: Type): Promise<number> {
  const sql = `select count(*) from ${table(type)}`;
  const response = await post("/v1/query", analyst, { sql, tenant: "acme" });
  const answer = (await response.json()) as { rows?: [string][] };
  return answer.rows === undefined ? 0 : Number(answer.rows[0]![0]);
}

/** Milliseconds from publishing to an answer that has the event, of each healthy type in turn. */
async function watch(seconds: number, meanwhile: () => Promise<void>): Promise<number[]> {
  const times: number[] = [];
  for (const end = performance.now() + seconds * 1000; performance.now() < end; ) {
    for (const type of HEALTHY) {
      const began = performance.now();
      const number = await publish(type);
      while ((await count(type)) < number) {
        if (performance.now() - began > 20_000) throw new Error(`${type} does not answer`);
      }
      times.push(performance.now() - began);
    }
    await meanwhile();
    await sleep(20);
  }
  return times.sort((a, b) => a - b);
}

const share = (times: readonly number[], part: number) => times[Math.floor((times.length - 1) * part)]!;

interface Ready {
  readonly ingest: string;
  readonly quarantined: readonly { readonly kind: string; readonly name: string; readonly remedy: string }[];
}
async function ready(): Promise<Ready> {
  const response = await fetch(`${server.url}/readyz`);
  expect(response.status).toBe(200);
  return (await response.json()) as Ready;
}

const inLake = (...path: string[]) => join(data, "lake", ...path);

function tear(root: string): void {
  const log = inLake(root, "_delta_log");
  const newest = readdirSync(log)
    .filter((name) => /^\d{20}\.json$/.test(name))
    .sort()
    .at(-1)!;
  writeFileSync(join(log, newest), "{not json");
  // Nobody would notice while a log checkpoint of that version tells the same.
  rmSync(join(log, newest.replace(".json", ".checkpoint.parquet")), { force: true });
}

function damage(): void {
  tear("raw/t.v1.TornRaw");
  tear("refined/t/tornrefined");
  const log = inLake("refined/t/lostcheckpoint/_delta_log");
  const checkpoints = readdirSync(log).filter((name) => name.endsWith(".checkpoint.parquet"));
  expect(checkpoints.length).toBeGreaterThan(0);
  for (const name of checkpoints) rmSync(join(log, name));
  const files = inLake("refined/t/lostfile/tenant_partition=~shared");
  for (const name of readdirSync(files)) rmSync(join(files, name), { force: true });
  fillScratch();
}

/** A disk of its own for what is spilled, and full. Where nothing may be mounted, a folder that takes nothing. */
function fillScratch(): void {
  const scratch = join(data, "scratch");
  rmSync(scratch, { recursive: true, force: true });
  try {
    mkdirSync(scratch, { recursive: true });
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", scratch], { stdio: "ignore" });
    mounted = true;
    execFileSync("dd", ["if=/dev/zero", `of=${join(scratch, "full")}`, "bs=64k"], { stdio: "ignore" });
  } catch {
    if (!mounted) {
      rmSync(scratch, { recursive: true, force: true });
      writeFileSync(scratch, "");
    }
  }
}

beforeAll(async () => {
  folder = await temporaryFolder();
  data = join(folder, "data");
  writeProject();
  env = {
    TRIBUTARY_PROTO_DIRS: join(folder, "proto"),
    TRIBUTARY_TRANSFORMS_DIR: join(folder, "transforms"),
    TRIBUTARY_TABLE__CHECKPOINT_EVERY: "3",
    TRIBUTARY_LOG__LEVEL: "error",
  };
  server = await Server.start("up", data, env);
  producer = await makeToken(data, "producer");
  analyst = await makeToken(data, "analyst");
});
afterAll(async () => {
  await server?.kill();
  if (mounted) execFileSync("umount", ["-l", join(data, "scratch")]);
  await removeFolder(folder);
});

describe("a fault stays where it happened", () => {
  test("others publish, land and answer as before, and each is repaired by what its message says", async () => {
    const types = Object.keys(TYPES) as Type[];
    for (let round = 0; round < 5; round++) {
      for (const type of types) await publish(type);
      for (const type of types) {
        if (NO_ROWS.includes(type)) continue;
        await until(`${type} to land`, async () => (await count(type)) === published.get(type));
      }
    }
    const stricken = types.filter((type) => !HEALTHY.includes(type));
    let turn = 0;
    // The same traffic before and beside the faults.
    const next = () => stricken[turn++ % stricken.length]!;
    const quiet = await watch(QUIET_SECONDS, async () => void (await publish(next())));

    await server.stop();
    damage();
    server = await Server.start("up", data, env);
    await until("ingest", async () => (await ready()).ingest === "running");
    for (const type of HEALTHY) await publish(type);
    await publish("Huge", HUGE);
    const faulty = await watch(SECONDS, async () => {
      const type = next();
      await publish(type, type === "Huge" && turn % 12 === 0 ? HUGE : 1);
    });
    const figures = [quiet, faulty].map((times) =>
      [times.length, share(times, 0.5), share(times, 0.9)].map(Math.round),
    );
    console.log(
      `publish to answer, ms: count, p50, p90: quiet ${figures[0]}, beside the faults ${figures[1]}`,
    );
    for (const part of [0.5, 0.9]) {
      expect(share(faulty, part), `share ${part}`).toBeLessThan(2 * share(quiet, part) + SLACK_MS);
    }

    // After the deadline the comparison says which is missing, and what is told of the others.
    const allTold = async () => (await ready()).quarantined.length >= 3;
    await until("what is damaged to be told of", allTold).catch(() => undefined);
    const { quarantined } = await ready();
    const told = JSON.stringify(quarantined);
    expect(quarantined.map(({ kind, name }) => `${kind} ${name}`).sort(), told).toEqual([
      "model t.lostfile",
      "model t.tornrefined",
      "raw t.v1.TornRaw",
    ]);
    for (const { remedy } of quarantined) {
      const [program, ...words] = remedy.split(" ");
      expect(program).toBe("tributary");
      const result = await cli([...words, "--data", data, "--json"], env);
      expect(result.code, `${remedy}: ${result.stdout}${result.stderr}`).toBe(0);
      expect((JSON.parse(result.stdout) as { done: string[] }).done, remedy).toHaveLength(1);
    }
    await until("all to be well", async () => (await ready()).quarantined.length === 0);
    const letters = JSON.parse((await cli(["deadletter", "ls", "--data", data, "--json"], env)).stdout) as {
      deadLetters: { model: string; code: string }[];
    };
    const dead = (type: Type) => letters.deadLetters.filter(({ model }) => model === table(type)).length;
    for (const type of types) {
      await until(
        `${type} to be whole`,
        async () => (await count(type)) + dead(type) === published.get(type),
        30,
      );
    }
    expect([dead("Throws"), dead("Huge") > 0]).toEqual([published.get("Throws"), true]);
    expect(dead("Well") + dead("TornRaw") + dead("LostFile")).toBe(0);
    const verified = await cli(["table", "verify", "--data", data, "--json"], env);
    expect(verified.code, verified.stdout).toBe(0);
  });
});
