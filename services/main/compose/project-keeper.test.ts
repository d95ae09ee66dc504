import { rmSync } from "node:fs";
import { join } from "node:path";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test } from "vitest";
import { writeProtos } from "../../../test/support/inline-protos.js";
import { temporaryFolder } from "../../../test/support/lake.js";
import { loadConfig } from "../../base/config.js";
import type { Project } from "../../ingest/project.js";
import { ProjectKeeper } from "./project-keeper.js";

const SOURCES = "sources: [{ name: raw, tables: [{ name: m.M }] }]";
const MODEL = (column: string) =>
  `{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}
   select tenant_id, entity_id, payload.${column} as shown from {{ source('raw', 'm.M') }}`;
const PROTO = (fields: string) => `syntax = "proto3"; package m; message M { string a = 1; ${fields} }`;

let folder: string;
let keeper: ProjectKeeper | undefined;
let metrics: Registry;
const changes: Project[] = [];

beforeEach(() => {
  folder = temporaryFolder();
  metrics = new Registry();
  changes.length = 0;
  write({ "proto/m.proto": PROTO(""), "t/models/sources.yml": SOURCES, "t/models/d/one.sql": MODEL("a") });
});
afterEach(async () => {
  await keeper?.close();
  rmSync(folder, { recursive: true });
});

const write = (files: Readonly<Record<string, string>>): void => writeProtos(folder, files);
async function open(watchMs = 0): Promise<ProjectKeeper> {
  const overrides = { protoDirs: [join(folder, "proto")], transformsDir: join(folder, "t"), watchMs };
  const config = loadConfig(overrides, { env: {} });
  keeper = await ProjectKeeper.open({ config, log: pino({ level: "silent" }), metrics, models: true });
  keeper.onChange((project) => changes.push(project));
  return keeper;
}
const modelNames = ({ current }: ProjectKeeper) => current.models.map(({ name }) => name);
const gauge = async () => (await metrics.getSingleMetric("tributary_project_broken")!.get()).values[0]!.value;

test("what fits takes the old one's place as a whole; what has not changed changes nothing", async () => {
  const open1 = await open();
  write({ "proto/m.proto": PROTO("int32 b = 2;"), "t/models/d/two.sql": MODEL("b") });
  expect(modelNames(open1)).toEqual(["d.one"]);
  await open1.reload();
  expect(modelNames(open1)).toEqual(["d.one", "d.two"]);
  expect(changes).toEqual([open1.current]);
  await open1.reload();
  expect(changes).toHaveLength(1);
  expect(open1.problem).toBeUndefined();
});

test.each<[string, Readonly<Record<string, string>>, RegExp]>([
  ["a broken .proto", { "proto/x.proto": "syntax;" }, /x\.proto, line 1/],
  ["a broken model", { "t/models/d/x.sql": MODEL("nope") }, /models\/d\/x\.sql, line 2: .*nope/],
  ["a broken properties file", { "t/models/d/x.yml": "models: [" }, /x\.yml, line 1/],
  [
    "a field number of other bytes",
    { "proto/m.proto": PROTO("").replace("string", "int32") },
    /number 1 was string/,
  ],
])("%s leaves the old one in force, whatever is sound beside it", async (_, files, message) => {
  const opened = await open();
  const before = opened.current;
  write({ "t/models/d/two.sql": MODEL("a"), ...files });
  await opened.reload();
  expect(opened.current).toBe(before);
  expect(changes).toEqual([]);
  expect(opened.problem!.message).toMatch(message);
  expect(await gauge()).toBe(1);
  for (const name of Object.keys(files)) rmSync(join(folder, name));
  write({ "proto/m.proto": PROTO("") });
  await opened.reload();
  expect(modelNames(opened)).toEqual(["d.one", "d.two"]);
  expect(opened.problem).toBeUndefined();
  expect(await gauge()).toBe(0);
});

test("at the start a model that does not fit is left out and told of, the others go on", async () => {
  write({ "t/models/d/x.sql": MODEL("nope") });
  const opened = await open();
  expect(modelNames(opened)).toEqual(["d.one"]);
  expect(opened.problem!.message).toMatch(/models\/d\/x\.sql/);
  write({ "proto/m.proto": "syntax;" });
  metrics = new Registry();
  await expect(open()).rejects.toMatchObject({ code: "TRB-CONFIG" });
});

test("files are looked at now and then, and read when they have come to rest", async () => {
  const opened = await open(20);
  write({ "t/models/d/two.sql": MODEL("a") });
  await expect.poll(() => modelNames(opened), { timeout: 20_000 }).toEqual(["d.one", "d.two"]);
  rmSync(join(folder, "t/models/d/two.sql"));
  await expect.poll(() => modelNames(opened), { timeout: 20_000 }).toEqual(["d.one"]);
});

test("a fault in one reload keeps no later one from its turn", async () => {
  const keeping = await open();
  keeping.onChange(({ models }) => {
    if (models.length === 2) throw new Error("a listener's fault");
  });
  write({ "t/models/d/two.sql": MODEL("a") });
  await expect(keeping.reload()).rejects.toThrow("a listener's fault");
  write({ "t/models/d/three.sql": MODEL("a") });
  await keeping.reload();
  expect(modelNames(keeping)).toEqual(["d.one", "d.three", "d.two"]);
});
