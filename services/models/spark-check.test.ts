import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { EDGE, EDGE_PROTO } from "../../test/support/spark-edges.js";
import { PROOFS } from "../../test/support/spark-proofs.js";
import { Duck } from "../base/duckdb.js";
import { packageRoot } from "../base/paths.js";
import { ProtoRegistry } from "../contracts/registry.js";
import { bindModel } from "./bind.js";
import { loadModels } from "./project.js";
import { checkSpark, type SparkFinding } from "./spark-check.js";
import { CASTS, INSTEAD, RULES } from "./spark-rules.js";

const folder = mkdtempSync(join(tmpdir(), "tributary-spark-"));
const registry = inlineProtos({ "t/v1/edge.proto": EDGE_PROTO });
const models = join(folder, "models", "t");
mkdirSync(models, { recursive: true });
writeFileSync(join(models, "sources.yml"), `sources: [{ name: raw, tables: [{ name: ${EDGE} }] }]`);
let duck: Duck;
beforeAll(async () => {
  duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
});
afterAll(() => {
  duck.close();
  rmSync(folder, { recursive: true, force: true });
});

async function findingsOf(sql: string): Promise<SparkFinding[]> {
  writeFileSync(
    join(models, "edges.sql"),
    `{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}\n${sql}`,
  );
  return duck.with(async (connection) => {
    const [model] = loadModels(folder);
    return checkSpark(connection, registry.entityType(EDGE)!, await bindModel(connection, registry, model!));
  });
}
const SOURCE = `{{ source('raw', '${EDGE}') }}`;
const select = (expression: string) =>
  findingsOf(`select tenant_id, entity_id,\n  ${expression} as x\nfrom ${SOURCE}`);

test("the shipped models are the same on Spark", async () => {
  const shipped = ProtoRegistry.load([join(packageRoot, "proto")]);
  await duck.with(async (connection) => {
    for (const model of loadModels(join(packageRoot, "transforms"))) {
      const bound = await bindModel(connection, shipped, model);
      expect(await checkSpark(connection, shipped.entityType(model.entityType)!, bound)).toEqual([]);
    }
  });
});

describe("the list", () => {
  test("has a proof for each entry, and an entry for each proof", () => {
    const others = ["comparison", "choice", "logic", "access"];
    const entries = [
      ...Object.keys(RULES),
      ...Object.keys(CASTS).map((type) => `cast to ${type}`),
      ...others,
    ];
    expect(Object.keys(PROOFS).sort()).toEqual(entries.sort());
  });

  test("has all that stands in a proof", async () => {
    const all = Object.values(PROOFS).flat();
    const columns = all.map((expression, at) => `${expression} as x${at}`);
    expect(await findingsOf(`select tenant_id, entity_id, ${columns.join(",\n")} from ${SOURCE}`)).toEqual(
      [],
    );
  });

  test("stands in transforms/README.md", () => {
    const readme = readFileSync(join(packageRoot, "transforms", "README.md"), "utf8");
    const listed = readme
      .slice(readme.indexOf("functions and\noperators:"))
      .split("```")[1]!
      .trim()
      .split(/\s+/);
    expect(listed).toEqual(Object.keys(RULES).sort());
  });

  test("refuses what it names something else for", () => {
    for (const name of Object.keys(INSTEAD)) expect(Object.keys(RULES)).not.toContain(name);
  });
});

describe("is told, with its line", () => {
  test.each([
    ["payload.big // 2", "//"],
    ["payload.big::integer", "::"],
    ["cast(payload.big as varchar)", "varchar"],
    ["cast(payload.big as TEXT )", "TEXT"],
    ["payload.big / payload.small", "/ of integer, integer"],
    ["payload.big % payload.small", "% of integer, integer"],
    ["payload.big % -1", "% of integer, integer"],
    ["payload.ratio / 2", "/ of double, integer"],
    ["payload.labels[1]", "an element by its number"],
    ["payload.labels[1:2]", "array_slice"],
    ["list_transform(payload.labels, lambda x: x || 'a')", "list_transform()"],
    ["epoch_us(payload.at)", "epoch_us()"],
    ["regexp_matches(payload.text, 'a')", "regexp_matches()"],
    ["lower(payload.text)", "lower()"],
    ["concat(payload.text, payload.maybe)", "concat()"],
    ["{'a': payload.text}", "struct_pack()"],
    ["try_cast(payload.text as integer)", "try_cast"],
    ["cast(payload.text as integer)", "a cast of text to INTEGER"],
    ["cast(payload.ratio as bigint)", "a cast of double to BIGINT"],
    ["cast(payload.at as string)", "a cast of time to VARCHAR"],
    ["cast(payload.at as timestamp)", "a cast of time to TIMESTAMP"],
    ["cast(payload.small as utinyint)", "a cast of integer to UTINYINT"],
    ["payload.at + interval 1 day", "to_days()"],
    ["cast(payload.at as date) - cast(payload.until as date)", "- of date, date"],
    ["length(payload.text)", "length() by itself, an INT in Spark"],
    ["cast(length(payload.text) as double)", "length() by itself, an INT in Spark"],
    ["substr(payload.text, 0)", "substr() of text, integer"],
    ["split_part(payload.text, payload.other, 1)", "split_part() of text, text, integer"],
    ["payload.text ilike 'a'", "~~*"],
    ["payload.text like payload.other", "~~ of text, text"],
    ["payload.labels = payload.labels", "a comparison of list and list"],
    ["payload.text = payload.small", "a comparison of text and integer"],
    ["coalesce(payload.maybe_big, payload.wide)", "a choice of integer and decimal"],
    ["'a\\b'", "a backslash in a text"],
    ["'it''s'", "a quote in a text"],
    ["e'a'", "e'"],
    ["$$a$$", "$"],
    ['payload."text"', '"text"'],
    ["1_000", "1_000"],
    ["payload.span", "payload.span"],
    ["payload.document", "payload.document"],
    ["payload", "the payload as a whole, in which Spark can't have document, span"],
    ["payload.wide * 2", "* of decimal, integer"],
  ])("%s", async (expression, found) => {
    const findings = await select(expression);
    expect(findings.map((finding) => finding.found)).toContain(found);
    const [finding] = findings.filter((each) => each.found === found);
    expect(finding).toMatchObject({ model: "t.edges", place: "models/t/edges.sql, line 3" });
    expect(finding!.instead).not.toBe("");
  });

  test.each([
    [`select * exclude (operation) from ${SOURCE}`, "EXCLUDE, REPLACE, RENAME or COLUMNS"],
    [`from ${SOURCE} select tenant_id, entity_id`, "FROM before SELECT"],
    [`select tenant_id, entity_id, from ${SOURCE}`, "a comma before FROM"],
    [`select tenant_id, entity_id, x: payload.text from ${SOURCE}`, ":"],
    [
      `select tenant_id, entity_id, payload.text as t from ${SOURCE} where t = 'a'`,
      "t, an alias of the same SELECT",
    ],
    [
      `with a as (select tenant_id, entity_id, payload.big as b from ${SOURCE}) select tenant_id, entity_id, b // 2 as h from a`,
      "//",
    ],
    [
      `select tenant_id, entity_id, "h" from (select *, upper(payload.text) as h from ${SOURCE}) q`,
      "upper()",
    ],
  ])("%s", async (sql, found) => {
    expect((await findingsOf(sql)).map((finding) => finding.found)).toContain(found);
  });

  test("a column of a type that Spark has not", async () => {
    const findings = await select("cast(payload.small as utinyint)");
    expect(findings.map(({ found }) => found)).toContain('column "x" of type UTINYINT');
  });
});
