import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { encodeRequest } from "../../services/contracts/encode-event.js";
import { ProtoRegistry } from "../../services/contracts/registry.js";
import { TrackerWorkload } from "../../services/main/workload/generator.js";
import { buildOnSpark, type Digest } from "../support/foreign.js";
import { changeLogs } from "../support/shared-data.js";
import { EDGE, EDGE_PROTO, EDGE_UNREADABLE, edgeEvents } from "../support/spark-edges.js";
import { PROOFS } from "../support/spark-proofs.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, untilLanded } from "../support/stack.js";

/**
 * dbt on Spark makes of raw what Tributary made of the live batches: the shipped models over a real change log and a
 * generated tracker, and a model of every kind of field over events that last-write-wins has to decide at each step.
 */

const SEED = Number(process.env.TEST_SEED ?? Date.now() % 1_000_000);
const CONFIG = "{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}\n";

/** Columns of the model of the list's proofs: x0, x1, … */
const expressions = Object.values(PROOFS)
  .flat()
  .map((expression, at) => [`x${at}`, expression] as const);

let folder: string;
let transforms: string;
let env: NodeJS.ProcessEnv;
let built: Awaited<ReturnType<typeof buildOnSpark>>;
beforeAll(async () => {
  folder = await temporaryFolder();
  transforms = join(folder, "transforms");
  await cp(join(packageRoot, "transforms"), transforms, { recursive: true });
  await mkdir(join(folder, "proto", "t"), { recursive: true });
  await writeFile(join(folder, "proto", "t", "edge.proto"), EDGE_PROTO);
  const protos = [join(packageRoot, "proto"), join(folder, "proto")];
  const registry = ProtoRegistry.load(protos);
  const readable = registry
    .entityType(EDGE)!
    .fields.map(({ name }) => name)
    .filter((name) => !EDGE_UNREADABLE.includes(name));
  await mkdir(join(transforms, "models", "t"));
  await writeFile(
    join(transforms, "models", "t", "sources.yml"),
    `version: 2\nsources:\n  - name: edges\n    tables: [{ name: ${EDGE} }]\n`,
  );
  const select = (columns: readonly string[]) =>
    `${CONFIG}select tenant_id, entity_id, ${columns.join(", ")} from {{ source('edges', '${EDGE}') }}`;
  await writeFile(
    join(transforms, "models", "t", "edges.sql"),
    select([
      "operation",
      "version",
      "occurred_at",
      ...readable.map((name) => `payload.${name} as f_${name}`),
    ]),
  );
  await writeFile(
    join(transforms, "models", "t", "expressions.sql"),
    select(expressions.map(([column, expression]) => `${expression} as ${column}`)),
  );
  env = { TRIBUTARY_TRANSFORMS_DIR: transforms, TRIBUTARY_PROTO_DIRS: protos.join(",") };
  await land(registry);
  const macro = await cli(["models", "spark", "--json"], env);
  expect(macro.code, macro.stderr).toBe(0);
  built = await buildOnSpark(transforms, join(folder, "data", "lake"), await columnsOf());
}, 900_000);
afterAll(() => removeFolder(folder));

async function land(registry: ProtoRegistry): Promise<void> {
  const data = join(folder, "data");
  const server = await Server.start("up", data, env);
  try {
    const token = await makeToken(data, "producer");
    const logs = changeLogs();
    const log = logs.reduce((least, each) => (each.lines.length < least.lines.length ? each : least));
    const post = async (type: string, body: Uint8Array<ArrayBuffer> | string) => {
      const headers = { authorization: `Bearer ${token}`, "content-type": type };
      const answer = await fetch(`${server.url}/v1/events`, { method: "POST", headers, body });
      const text = await answer.text();
      expect(answer.status, text).toBe(200);
      // A rejected event's answer names its code, in JSON and in protobuf alike.
      expect(text).not.toContain("TRB-");
    };
    const lines = log.lines.toReversed();
    for (let at = 0; at < lines.length; at += 500) {
      await post("application/x-ndjson", `${lines.slice(at, at + 500).join("\n")}\n`);
    }
    const workload = new TrackerWorkload(registry, {
      seed: SEED,
      tenants: 4,
      entities: 300,
      events: 2_000,
      disorder: { duplicates: 0.05, late: 0.1, ties: 0.1 },
    });
    const edges = edgeEvents(SEED, 900);
    for (const { bytes } of [...workload.bodies(), { bytes: encodeRequest(edges) }]) {
      await post("application/x-protobuf", Uint8Array.from(bytes));
    }
    await untilLanded(data, 120, env);
  } finally {
    expect(await server.stop()).toBe(0);
  }
}

/** Columns of each model by its name, as `models check` finds them. */
async function columnsOf(): Promise<Record<string, { folder: string; columns: string[] }>> {
  const { stdout } = await cli(["models", "ls", "--json"], env);
  const models = (JSON.parse(stdout) as { models: { name: string }[] }).models;
  const entries = models.map(async ({ name }) => {
    const [domain, table] = name.split(".") as [string, string];
    const log = join(
      folder,
      "data",
      "lake",
      "refined",
      domain,
      table,
      "_delta_log",
      "00000000000000000000.json",
    );
    const lines = (await readFile(log, "utf8")).trim().split("\n");
    const schema = lines.map((line) => JSON.parse(line)).find((action) => action.metaData)
      .metaData.schemaString;
    const fields = (JSON.parse(schema) as { fields: { name: string }[] }).fields.map((field) => field.name);
    const columns = fields.filter(
      (field) => !field.startsWith("_tributary_") && field !== "tenant_partition",
    );
    return [table, { folder: `${domain}/${table}`, columns }] as const;
  });
  return Object.fromEntries(await Promise.all(entries));
}

describe(`dbt on Spark (seed ${SEED})`, () => {
  test.each(["commits", "files", "issues", "projects", "edges"])("builds %s as Tributary did", (name) => {
    const { dbt, ours } = built[name]!;
    expect(rowsOf(ours)).toBeGreaterThan(0);
    expect(dbt).toEqual(ours);
  });

  test.each(expressions)("computes %s, %s, as Tributary did", (column) => {
    const { dbt, ours } = built.expressions!;
    const of = (tenants: typeof ours) =>
      Object.entries(tenants).map(([tenant, columns]) => [tenant, columns[column]]);
    expect(of(ours).length).toBeGreaterThan(1);
    expect(of(dbt)).toEqual(of(ours));
  });
});

const rowsOf = (tenants: Readonly<Record<string, Record<string, Digest>>>): number =>
  Object.values(tenants).reduce((sum, columns) => sum + Object.values(columns)[0]!.rows, 0);
