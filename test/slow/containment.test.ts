import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { cli, makeToken, removeFolder, Server, temporaryFolder, until } from "../support/stack.js";

/**
 * I12 against real processes: beside tables that are damaged in every way we know, a full scratch disk, a model that
 * fails on every row and poison that asks for 4 and for 100 GB, healthy types publish, land and answer as before; then
 * each is repaired by what its message says. CONTAINMENT_SECONDS (default 45) is how long the faults are watched.
 *
 * "As before" is measured beside it: a second server on the same machine has the same traffic without the faults, and
 * takes its turns between those of the first. What others do to the machine meanwhile they do to both.
 */
const SECONDS = Number(process.env.CONTAINMENT_SECONDS ?? 45);
/** What healthy types may take beside the faults, in times of what they take without. */
const TIMES = 2;
const LEAST = 40;

/** Type → the SQL of its value column. */
const TYPES = {
  Well: "payload.name",
  Fine: "upper(payload.name)",
  TornRaw: "payload.name",
  TornRefined: "payload.name",
  LostCheckpoint: "payload.name",
  LostFile: "payload.name",
  Throws: "cast(payload.name as integer)::varchar",
  // Of one gigabyte each, as many as the amount has.
  Huge: "len(list_transform(range(payload.amount // 1000000000), lambda i: repeat(repeat(payload.name, 1000), 1000000)))::varchar",
  Swells: "repeat(repeat(payload.name, 1000), payload.amount // 1000)",
} as const;
type Type = keyof typeof TYPES;
const types = Object.keys(TYPES) as Type[];
const HEALTHY: readonly Type[] = ["Well", "Fine"];
const STRICKEN = types.filter((type) => !HEALTHY.includes(type));
/** What the poison among a type's events asks for, in bytes: more than there is, and as much as may just be had. */
const POISON: Partial<Record<Type, number>> = { Huge: 100_000_000_000, Swells: 4_000_000_000 };
/** Nobody has these rows: they are dead letters. */
const NO_ROWS: readonly Type[] = ["Throws"];

const table = (type: Type) => `t.${type.toLowerCase()}`;

let folder: string;
let env: NodeJS.ProcessEnv;
let struck: Site;
let control: Site;
let mounted = false;

function writeProject(): void {
  const proto = join(folder, "proto", "t", "v1");
  const models = join(folder, "transforms", "models", "t");
  for (const path of [proto, models]) mkdirSync(path, { recursive: true });
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

/** A server on a folder of its own, and what was published to it. */
class Site {
  readonly published = new Map<Type, number>();
  private readonly poisoned = new Map<Type, number>();
  private turn = 0;
  /** Milliseconds from publishing an event of a healthy type to an answer that has it. */
  times: number[] = [];

  private constructor(
    readonly data: string,
    private server: Server,
    private readonly producer: string,
    private readonly analyst: string,
  ) {}

  static async start(data: string): Promise<Site> {
    const server = await Server.start("up", data, env);
    return new Site(data, server, await makeToken(data, "producer"), await makeToken(data, "analyst"));
  }

  async restart(meanwhile: () => void): Promise<void> {
    await this.server.stop();
    meanwhile();
    this.server = await Server.start("up", this.data, env);
    await until("ingest", async () => (await this.ready()).ingest === "running");
  }

  kill(): Promise<void> {
    return this.server.kill();
  }

  private post(path: string, token: string, body: unknown): Promise<Response> {
    return fetch(this.server.url + path, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify(body),
    });
  }

  /** Publishes the type's next entity. */
  async publish(type: Type, amount = 1): Promise<number> {
    const number = (this.published.get(type) ?? 0) + 1;
    const event = {
      tenantId: "acme",
      entityType: `t.v1.${type}`,
      entityId: String(number),
      operation: "OPERATION_CREATED",
      version: "1",
      payload: { "@type": `type.googleapis.com/t.v1.${type}`, name: "x", amount: String(amount) },
    };
    const response = await this.post("/v1/events", this.producer, [event]);
    expect(await response.json(), type).toMatchObject({ accepted: 1 });
    this.published.set(type, number);
    return number;
  }

  async poison(type: Type): Promise<void> {
    await this.publish(type, POISON[type]!);
    this.poisoned.set(type, this.poisons(type) + 1);
  }

  poisons(type: Type): number {
    return this.poisoned.get(type) ?? 0;
  }

  async count(type: Type): Promise<number> {
    const sql = `select count(*) from ${table(type)}`;
    const response = await this.post("/v1/query", this.analyst, { sql, tenant: "acme" });
    const answer = (await response.json()) as { rows?: [string][] };
    return answer.rows === undefined ? 0 : Number(answer.rows[0]![0]);
  }

  /** One event of each healthy type, and one of those that are, or could be, stricken. */
  async round(poisonous: boolean): Promise<void> {
    for (const type of HEALTHY) {
      const began = performance.now();
      const number = await this.publish(type);
      while ((await this.count(type)) < number) {
        if (performance.now() - began > 20_000) throw new Error(`${type} does not answer`);
      }
      this.times.push(performance.now() - began);
    }
    const type = STRICKEN[this.turn++ % STRICKEN.length]!;
    if (poisonous && POISON[type] !== undefined && this.turn % POISON_EVERY < STRICKEN.length) {
      await this.poison(type);
    } else await this.publish(type);
    await sleep(20);
  }

  async ready(): Promise<Ready> {
    const response = await fetch(`${this.server.url}/readyz`);
    expect(response.status).toBe(200);
    return (await response.json()) as Ready;
  }
}
/** Rounds. */
const POISON_EVERY = 100;

/** Rounds of both in turns, so that both have the same machine. */
async function watch(seconds: number, poisonous: boolean): Promise<void> {
  for (const site of [struck, control]) site.times = [];
  const end = performance.now() + seconds * 1000;
  // On a machine that is busy fewer would tell nothing.
  while (performance.now() < end || struck.times.length < LEAST) {
    await struck.round(poisonous);
    await control.round(false);
  }
}

function share(times: readonly number[], part: number): number {
  const sorted = [...times].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) * part)]!;
}

const figures = ({ times }: Site) =>
  [times.length, share(times, 0.5), share(times, 0.9), share(times, 1)].map(Math.round).join(", ");

interface Ready {
  readonly ingest: string;
  readonly quarantined: readonly { readonly kind: string; readonly name: string; readonly remedy: string }[];
}
const inLake = (...path: string[]) => join(struck.data, "lake", ...path);

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
  const scratch = join(struck.data, "scratch");
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
  writeProject();
  env = {
    TRIBUTARY_PROTO_DIRS: join(folder, "proto"),
    TRIBUTARY_TRANSFORMS_DIR: join(folder, "transforms"),
    TRIBUTARY_TABLE__CHECKPOINT_EVERY: "3",
    TRIBUTARY_LOG__LEVEL: "error",
  };
  struck = await Site.start(join(folder, "struck"));
  control = await Site.start(join(folder, "control"));
});
afterAll(async () => {
  await struck?.kill();
  await control?.kill();
  if (mounted) execFileSync("umount", ["-l", join(struck.data, "scratch")]);
  await removeFolder(folder);
});

describe("a fault stays where it happened", () => {
  test("others publish, land and answer as before, and each is repaired by what its message says", async () => {
    for (let round = 0; round < 5; round++) {
      for (const site of [struck, control]) {
        for (const type of types) await site.publish(type);
        for (const type of types) {
          if (NO_ROWS.includes(type)) continue;
          await until(`${type} to land`, async () => (await site.count(type)) === site.published.get(type));
        }
      }
    }
    await watch(Math.min(SECONDS, 10), false);
    console.log(
      `publish to answer, ms: count, p50, p90, max: well ${figures(struck)}, control ${figures(control)}`,
    );

    await struck.restart(damage);
    await control.restart(() => undefined);
    for (const type of HEALTHY) for (const site of [struck, control]) await site.publish(type);
    for (const type of ["Huge", "Swells"] as const) await struck.poison(type);
    await watch(SECONDS, true);
    console.log(`beside the faults ${figures(struck)}, control ${figures(control)}`);
    for (const part of [0.5, 0.9]) {
      expect(share(struck.times, part), `share ${part}`).toBeLessThan(TIMES * share(control.times, part));
    }

    // After the deadline the comparison says which is missing, and what is told of the others.
    const damaged = async () =>
      (await struck.ready()).quarantined.filter(
        ({ name }) => !Object.keys(POISON).map(nameOf).includes(name),
      );
    await until("what is damaged to be told of", async () => (await damaged()).length >= 3).catch(
      () => undefined,
    );
    const quarantined = await damaged();
    const told = JSON.stringify(quarantined);
    expect(quarantined.map(({ kind, name }) => `${kind} ${name}`).sort(), told).toEqual([
      "model t.lostfile",
      "model t.tornrefined",
      "raw t.v1.TornRaw",
    ]);
    const { data } = struck;
    for (const { remedy } of quarantined) {
      const [program, ...words] = remedy.split(" ");
      expect(program).toBe("tributary");
      const result = await cli([...words, "--data", data, "--json"], env);
      expect(result.code, `${remedy}: ${result.stdout}${result.stderr}`).toBe(0);
      expect((JSON.parse(result.stdout) as { done: string[] }).done, remedy).toHaveLength(1);
    }
    await until("all to be well", async () => (await struck.ready()).quarantined.length === 0, 180);
    const dead = await deadLetters();
    for (const type of types) {
      const whole = async () => (await struck.count(type)) + dead(type).length === struck.published.get(type);
      await until(`${type} to be whole`, whole, 30);
    }
    expect(dead("Throws")).toHaveLength(struck.published.get("Throws")!);
    for (const type of ["Huge", "Swells"] as const) {
      const codes = Array.from({ length: struck.poisons(type) }, () => "TRB-INGEST-MEMORY");
      expect(dead(type), type).toEqual(codes);
    }
    expect([...dead("Well"), ...dead("TornRaw"), ...dead("LostFile")]).toEqual([]);
    const verified = await cli(["table", "verify", "--data", data, "--json"], env);
    expect(verified.code, verified.stdout).toBe(0);
  });
});

const nameOf = (type: string): string => table(type as Type);

/** Codes of a type's dead letters. */
async function deadLetters(): Promise<(type: Type) => string[]> {
  const { stdout } = await cli(["deadletter", "ls", "--data", struck.data, "--json"], env);
  const letters = (JSON.parse(stdout) as { deadLetters: { model: string; code: string }[] }).deadLetters;
  return (type) => letters.filter(({ model }) => model === table(type)).map(({ code }) => code);
}
