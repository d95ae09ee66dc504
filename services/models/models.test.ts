import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder, writeProject, writeProto } from "../../test/support/lake.js";
import { Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { packageRoot } from "../base/paths.js";
import { ProtoRegistry } from "../contracts/registry.js";
import { type BoundModel, bindModel } from "./bind.js";
import { loadModels } from "./project.js";

const folder = temporaryFolder();
const registry = ProtoRegistry.load([writeProto(join(folder, "proto"))]);
const project = join(folder, "transforms");
let duck: Duck;

beforeAll(async () => {
  duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
});
afterAll(() => {
  duck.close();
  rmSync(folder, { recursive: true, force: true });
});

const FROM = "from {{ source('raw', 't.v1.Thing') }}";
const KEYS = "tenant_id, entity_id";

const bindAll = (from: ProtoRegistry, transforms: string): Promise<BoundModel[]> =>
  duck.with(async (connection) => {
    const bound: BoundModel[] = [];
    for (const model of loadModels(transforms)) bound.push(await bindModel(connection, from, model));
    return bound;
  });

async function bind(sql: string, schema?: string): Promise<BoundModel> {
  writeProject(project, { things: sql }, schema);
  return (await bindAll(registry, project))[0]!;
}

/** Binds a model that must be refused; returns what the modeler reads. */
async function refusal(sql: string, schema?: string): Promise<string> {
  try {
    await bind(sql, schema);
  } catch (error) {
    expect(error).toBeInstanceOf(TributaryError);
    expect((error as TributaryError).code).toBe("TRB-MODEL-INVALID");
    return (error as TributaryError).message;
  }
  return expect.fail(`not refused: ${sql}`);
}

describe("the shipped models", () => {
  test("load, bind, and have every described column", async () => {
    const shipped = ProtoRegistry.load([join(packageRoot, "proto")]);
    const models = await bindAll(shipped, join(packageRoot, "transforms"));
    expect(models.map(({ name }) => name)).toEqual([
      "scm.commits",
      "scm.files",
      "tracker.issues",
      "tracker.projects",
    ]);
    for (const { columns, columnDescriptions } of models) {
      expect([...columnDescriptions.keys()].sort()).toEqual(columns.map(({ name }) => name).sort());
      for (const { description } of columns) expect(description).toBeTruthy();
    }
  });
});

describe("a model may", () => {
  const fine: readonly [string, string][] = [
    ["read the source plainly", `select ${KEYS}, payload.name as name ${FROM}`],
    ["filter", `select ${KEYS} ${FROM} where payload.amount > 1 and operation <> 'CREATED'`],
    [
      "go through CTEs with stars",
      `with a as (select * ${FROM}), b as (select * exclude (payload), payload.name as name from a) select b.*, upper(name) as upper_name from b`,
    ],
    [
      "go through a subquery",
      `select s.tenant_id, s.entity_id, s.n from (select ${KEYS}, payload.name as n ${FROM}) as s`,
    ],
    ["name the source", `select t.tenant_id, t.entity_id, t.payload.name as name ${FROM} t`],
    ["name a relation like a struct", `select payload.tenant_id, payload.entity_id ${FROM} as payload`],
    [
      "replace other columns in a star",
      `select * replace (upper(n) as n) from (select ${KEYS}, payload.name as n ${FROM})`,
    ],
    [
      "work on lists",
      `select ${KEYS}, list_transform(payload.labels, x -> upper(x)) as labels, list_sort(payload.labels)[1] as least, list_count(payload.labels) as n ${FROM}`,
    ],
    [
      "call error()",
      `select ${KEYS}, case when payload.amount < 0 then error('negative') else payload.amount end as amount ${FROM}`,
    ],
    ["end in a comment", `select ${KEYS} ${FROM} -- the end`],
    ["sort, which means nothing", `select ${KEYS} ${FROM} order by entity_id`],
  ];
  test.each(fine)("%s", async (_, sql) => {
    const { columns } = await bind(sql);
    expect(columns.slice(0, 2).map(({ name, type }) => `${name} ${type}`)).toEqual([
      "tenant_id VARCHAR",
      "entity_id VARCHAR",
    ]);
  });
});

describe("a model is refused, with its name and the construct,", () => {
  const broken: readonly [string, string, RegExp][] = [
    ["for an unknown payload field", `select ${KEYS}, payload.nope as nope ${FROM}`, /nope/],
    ["for a syntax error", `select ${KEYS} frm x ${FROM}`, /syntax/i],
    [
      "for an aggregate",
      `select ${KEYS}, max(payload.amount) as m ${FROM} group by all`,
      /GROUP BY|aggregate/,
    ],
    [
      "for an aggregate without groups",
      `select any_value(tenant_id) as tenant_id, any_value(entity_id) as entity_id ${FROM}`,
      /tenant_id/,
    ],
    ["for an aggregate behind a macro", `select ${KEYS}, geomean(payload.amount) as m ${FROM}`, /geomean/],
    ["for groups", `select ${KEYS} ${FROM} group by 1, 2`, /GROUP BY/],
    ["for a window", `select ${KEYS}, row_number() over (order by version) as n ${FROM}`, /window/],
    [
      "for QUALIFY",
      `select ${KEYS} ${FROM} qualify row_number() over (order by version) = 1`,
      /QUALIFY|window/,
    ],
    [
      "for a join",
      `with a as (select * ${FROM}) select a.tenant_id, a.entity_id from a join a b on a.entity_id = b.entity_id`,
      /join/,
    ],
    ["for a cross join", `with a as (select * ${FROM}) select a.tenant_id, a.entity_id from a, a b`, /join/],
    ["for LIMIT", `select ${KEYS} ${FROM} limit 1`, /LIMIT/],
    ["for DISTINCT", `select distinct ${KEYS} ${FROM}`, /DISTINCT/],
    [
      "for UNION",
      `with a as (select * ${FROM}) select ${KEYS} from a union all select ${KEYS} from a`,
      /UNION/,
    ],
    ["for a sample of a table", `select ${KEYS} ${FROM} tablesample 50%`, /sample/],
    ["for a sample of an answer", `select ${KEYS} ${FROM} using sample 50%`, /sample/],
    [
      "for a recursive CTE",
      `with recursive a as (select ${KEYS} ${FROM} union all select ${KEYS} from a) select ${KEYS} from a`,
      /recursive|UNION/,
    ],
    ["for unnest", `select ${KEYS}, unnest(payload.labels) as label ${FROM}`, /unnest/],
    ["for random()", `select ${KEYS}, random() as r ${FROM}`, /random/],
    ["for now()", `select ${KEYS}, now() as at ${FROM}`, /now/],
    ["for uuid()", `select ${KEYS}, uuid() as id ${FROM}`, /uuid/],
    ["for current_timestamp", `select ${KEYS}, current_timestamp as at ${FROM}`, /current_timestamp/],
    [
      "for current_date in a filter",
      `select ${KEYS} ${FROM} where occurred_at < current_date`,
      /current_date/,
    ],
    ["for a volatile macro", `select ${KEYS}, ago(interval 1 day) as at ${FROM}`, /ago/],
    [
      "for another volatile macro",
      `select ${KEYS}, pg_postmaster_start_time() as at ${FROM}`,
      /pg_postmaster/,
    ],
    ["for age() of one time", `select ${KEYS}, age(occurred_at) as age ${FROM}`, /age/],
    ["for stats()", `select ${KEYS}, stats(entity_id) as s ${FROM}`, /stats/],
    ["for settings", `select ${KEYS}, current_setting('memory_limit') as s ${FROM}`, /current_setting/],
    [
      "for a volatile default in a list function",
      `select ${KEYS}, list_transform(payload.labels, x -> x || random()) as l ${FROM}`,
      /random/,
    ],
    [
      "for a scalar subquery",
      `with a as (select * ${FROM}) select ${KEYS}, (select entity_id from a) as other from a`,
      /subquery/,
    ],
    [
      "for IN (SELECT …)",
      `with a as (select * ${FROM}) select ${KEYS} from a where entity_id in (select payload.name from a)`,
      /subquery/,
    ],
    [
      "for EXISTS",
      `with a as (select * ${FROM}) select ${KEYS} from a where exists (select 1 from a b where b.entity_id = a.payload.name)`,
      /subquery/,
    ],
    ["for another table", `with a as (select * ${FROM}) select ${KEYS} from duckdb_tables`, /duckdb_tables/],
    [
      "for a table function",
      `with a as (select * ${FROM}) select ${KEYS} from read_parquet('/x')`,
      /table function/,
    ],
    ["for a file", `with a as (select * ${FROM}) select ${KEYS} from '/etc/passwd'`, /passwd/],
    [
      "for VALUES",
      `with a as (select * ${FROM}) select * from (values ('a', 'b')) v(tenant_id, entity_id)`,
      /column list|VALUES/,
    ],
    [
      "for a source that it does not read",
      `with a as (select * ${FROM}) select 'x' as tenant_id, 'y' as entity_id`,
      /FROM/,
    ],
    ["for two statements", `select ${KEYS} ${FROM}; select 1`, /exactly one SELECT/],
    ["for no SELECT", `create table x as select ${KEYS} ${FROM}`, /SELECT/],
    ["for reserved names", `select ${KEYS}, version as _tributary_version ${FROM}`, /_tributary_version/],
    [
      "for the partition column's name",
      `select ${KEYS}, version as tenant_partition ${FROM}`,
      /tenant_partition/,
    ],
    ["for a column without a name", `select ${KEYS}, payload.amount + 1 ${FROM}`, /AS/],
    [
      "for two columns of one name",
      `select ${KEYS}, payload.name as x, payload.amount as "X" ${FROM}`,
      /twice|X/,
    ],
    ["without a tenant", `select entity_id ${FROM}`, /tenant_id/],
    ["for the name that ingest counts rows by", `select ${KEYS}, version as ord ${FROM}`, /"ord": the name/],
    ["for a semicolon at the end", `select ${KEYS} ${FROM};`, /syntax error/],
    ["for AT", `select ${KEYS} ${FROM} at (version => 1)`, /AT/],
    ["for GROUP BY ALL", `select ${KEYS} ${FROM} group by all`, /GROUP BY/],
    ["for HAVING", `select ${KEYS} ${FROM} having true`, /GROUP BY/],
    ["for QUALIFY without a window", `select ${KEYS} ${FROM} qualify version = 1`, /QUALIFY/],
    ["for a volatile order", `select ${KEYS} ${FROM} order by random()`, /random/],
    ["for a volatile value in a star", `select * replace (random() as version) ${FROM}`, /random/],
    ["for a column by position", `select ${KEYS}, #3 as operation ${FROM}`, /position/],
    ["for another relation's star", `select x.* ${FROM} t`, /x\.\*/],
    ["for COLUMNS()", `select COLUMNS('.*_id') ${FROM}`, /COLUMNS/],
    [
      "for a CTE that reads itself",
      `with s as (select * ${FROM}), a as (select * from a) select * from a`,
      /reads "a"/,
    ],
  ];
  test.each(broken)("%s", async (_, sql, what) => {
    const message = await refusal(sql);
    expect(message).toMatch(what);
    expect(message).toMatch(/^models\/t\/things\.sql/);
  });

  const smuggled: readonly [string, string][] = [
    ["an expression", `select 'evil' as tenant_id, entity_id ${FROM}`],
    ["a payload field of that name", `select payload.tenant_id, entity_id ${FROM}`],
    ["a payload field, aliased", `select payload.tenant_id as tenant_id, entity_id ${FROM}`],
    ["a payload field in brackets", `select payload['tenant_id'] as tenant_id, entity_id ${FROM}`],
    ["a parenthesised field", `select (payload.tenant_id), entity_id ${FROM}`],
    ["the other key", `select entity_id as tenant_id, tenant_id as entity_id ${FROM}`],
    ["a struct's star", `select payload.* ${FROM}`],
    ["a struct's star beside the keys", `select * from (select payload.*, ${KEYS} ${FROM})`],
    ["unnest of a struct", `select * from (select unnest(payload), ${KEYS} ${FROM})`],
    ["a star with REPLACE", `select * replace (payload.tenant_id as tenant_id) ${FROM}`],
    ["a star with REPLACE in capitals", `select * replace (payload.tenant_id as TENANT_ID) ${FROM}`],
    [
      "a star with RENAME",
      `select * rename (entity_id as tenant_id, tenant_id as entity_id) from (select ${KEYS} ${FROM})`,
    ],
    [
      "a star with EXCLUDE and another column",
      `select * exclude (tenant_id), payload.name as tenant_id ${FROM}`,
    ],
    ["an inner SELECT", `select ${KEYS} from (select payload.name as tenant_id, entity_id ${FROM})`],
    [
      "an inner SELECT that renames the struct",
      `select p.tenant_id, entity_id from (select payload as p, ${KEYS} ${FROM}) x`,
    ],
    [
      "an inner SELECT without the key",
      `select p.tenant_id, p.entity_id from (select payload as p ${FROM}) p`,
    ],
    [
      "a CTE's column list",
      `with a(tenant_id, entity_id) as (select payload.name, entity_id ${FROM}) select ${KEYS} from a`,
    ],
    [
      "a subquery's column list",
      `select ${KEYS} from (select payload.name, entity_id ${FROM}) as a(tenant_id, entity_id)`,
    ],
    ["the source's column list", `select ${KEYS} ${FROM} as a(entity_id, tenant_id)`],
    ["COLUMNS with a new name", `select COLUMNS('(entity)_id') as 'tenant_id', entity_id ${FROM}`],
    ["COLUMNS in an expression", `select upper(COLUMNS('.*_id')) ${FROM}`],
    ["a position", `select #2 as tenant_id, entity_id ${FROM}`],
    [
      "a CTE in the source's place",
      `with a as (select * ${FROM}), "t.v1.Thing" as (select 'evil' as tenant_id, 'x' as entity_id from a) select ${KEYS} from "t.v1.Thing"`,
    ],
    [
      "a star that excludes it by its relation",
      `select * exclude (t.tenant_id), payload.name as tenant_id ${FROM} t`,
    ],
    ["a quoted alias in capitals", `select payload.name as "TENANT_ID", entity_id ${FROM}`],
    ["a lateral alias", `select payload.name as t, t as tenant_id, entity_id ${FROM}`],
  ];
  test.each(smuggled)("for a foreign key by way of %s", async (_, sql) => {
    expect(await refusal(sql)).toMatch(/^models\/t\/things\.sql/);
  });
});

describe("what is refused is told with its file and line", () => {
  const columns = `select tenant_id, entity_id,\n  payload.name as name`;
  test.each<[string, string, number]>([
    ["an unknown field", `${columns},\n  payload.nope as nope\n${FROM}`, 4],
    ["a syntax error", `-- a comment, ümläut\n\n${columns},\n  payload.amount amount amount\n${FROM}`, 6],
    ["an unstable function", `${columns},\n  payload.amount as amount,\n  random() as r\n${FROM}`, 5],
    ["a subquery", `-- ümläut\n${columns},\n  (select 1) as one\n${FROM}`, 5],
    ["a join", `with a as (\n  select * ${FROM}\n)\n${columns}\nfrom a\njoin a b on true`, 8],
    ["a limit", `${columns}\n${FROM}\nlimit 1`, 5],
    ["a foreign key", `select\n  'x' as tenant_id,\n  entity_id\n${FROM}`, 3],
    [
      "the second of two equal lines",
      `with a as (select *\n,payload.x as x\n${FROM})\nselect *\n,payload.x as y\nfrom a`,
      3,
    ],
    [
      "a line with a template",
      `{% if is_incremental() %}\nwhere\n{% endif %}\n${columns},\n nope.x as x\n${FROM}`,
      7,
    ],
    ["an undeclared source", `${columns}\nfrom {{ source('raw', 't.v1.Other') }}`, 4],
    ["a second source", `${columns}\n${FROM}\nunion all select 1 ${FROM}`, 5],
  ])("%s", async (_, sql, line) => {
    // The template's first line is its configuration.
    expect(await refusal(sql)).toMatch(new RegExp(`^models/t/things\\.sql, line ${line}: `));
  });
  test("of properties too", async () => {
    const sql = `${columns} ${FROM}`;
    const column = "models:\n  - name: things\n    columns:\n      - name: name\n      - name: nope\n";
    expect(await refusal(sql, column)).toMatch(
      /^models\/t\/schema\.yml, line 5: t\.things has no column "nope"/,
    );
    expect(await refusal(sql, `${column}        data_tests: [odd]\n`)).toMatch(
      /^models\/t\/schema\.yml, line 6: /,
    );
    expect(await refusal(sql, "models:\n  - name: things\n  - name: gone\n")).toMatch(
      /^models\/t\/schema\.yml, line 3: .*"gone"/,
    );
    expect(await refusal(sql, "models:\n  - name: [\n")).toMatch(/^models\/t\/schema\.yml, line \d: .*YAML/);
  });
});

describe("the project around a model", () => {
  const sql = `select ${KEYS}, payload.name as name ${FROM}`;

  test("schema.yml that describes or tests a column that is not there names it", async () => {
    const schema = (column: string) => `models: [{ name: things, columns: [{ ${column} }] }]`;
    expect(await refusal(sql, schema("name: nope, description: x"))).toMatch(/nope/);
    expect(await refusal(sql, schema("name: nope, data_tests: [not_null]"))).toMatch(/nope/);
    await bind(sql, schema("name: name, data_tests: [not_null, { accepted_values: { values: [a] } }]"));
  });

  test("schema.yml that describes a model that is not there names it", async () => {
    expect(await refusal(sql, "models: [{ name: gone }]")).toMatch(/gone/);
  });

  test("damaged YAML, an unknown test and a missing folder are told", async () => {
    expect(await refusal(sql, "models: [")).toMatch(/YAML/);
    expect(
      await refusal(sql, "models: [{ name: things, columns: [{ name: name, data_tests: [odd] }] }]"),
    ).toMatch(/data_tests/);
    expect(() => loadModels(join(folder, "nowhere"))).toThrow(/models/);
  });

  test("two sources, an undeclared one and none are refused", async () => {
    expect(await refusal(`${sql} union all select 1 ${FROM}`)).toMatch(/one source/);
    expect(await refusal(`select ${KEYS} from {{ source('raw', 't.v1.Other') }}`)).toMatch(/t\.v1\.Other/);
    expect(await refusal("select 1")).toMatch(/source/);
  });

  test("an undeclared macro or a broken template names the file", async () => {
    expect(await refusal(`select ${KEYS} from {{ ref('x') }}`)).toMatch(/things\.sql/);
    expect(await refusal(`select ${KEYS} ${FROM} {% if %}`)).toMatch(/things\.sql/);
  });

  test("is_incremental() is false: the batch is the increment", async () => {
    const { sql: rendered } = await bind(`${sql} {% if is_incremental() %} where false {% endif %}`);
    expect(rendered).not.toContain("where");
  });

  test("another unique_key or materialization is refused", () => {
    for (const config of [
      "materialized='incremental', unique_key=['entity_id']",
      "materialized='incremental', unique_key='entity_id'",
      "materialized='table', unique_key=['tenant_id', 'entity_id']",
      "materialized='incremental'",
    ]) {
      writeProject(project, {});
      writeFileSync(join(project, "models", "t", "things.sql"), `{{ config(${config}) }} ${sql}`);
      expect(() => loadModels(project)).toThrow(/things\.sql.*config/);
    }
  });

  test("names that would not do as folders are refused", () => {
    writeProject(project, {});
    mkdirSync(join(project, "models", "Bad"));
    writeFileSync(join(project, "models", "Bad", "x.sql"), sql);
    expect(() => loadModels(project)).toThrow(/Bad\/x\.sql/);
  });
});

describe("the fingerprint", () => {
  const sql = `select ${KEYS}, payload.name as name ${FROM}`;

  test("changes with the SQL and with the payload's shape, and with nothing else", async () => {
    const { fingerprint } = await bind(sql);
    expect((await bind(sql)).fingerprint).toBe(fingerprint);
    const described =
      "models: [{ name: things, description: Things., columns: [{ name: name, description: x }] }]";
    expect((await bind(sql, described)).fingerprint).toBe(fingerprint);
    expect((await bind(`${sql} where version > 1`)).fingerprint).not.toBe(fingerprint);
  });

  test("changes with the payload's fields that the SQL reads, and not with others", async () => {
    const descriptors = (fields: string): ProtoRegistry => {
      const proto = mkdtempSync(join(folder, "proto-"));
      mkdirSync(join(proto, "t", "v1"), { recursive: true });
      writeFileSync(
        join(proto, "t", "v1", "thing.proto"),
        `syntax = "proto3"; package t.v1; message Thing { ${fields} }`,
      );
      return ProtoRegistry.load([proto]);
    };
    const base = descriptors("string name = 1; string note = 3;");
    const wider = descriptors("string name = 1; string note = 3; int32 more = 2;");
    const other = descriptors("bytes name = 1; string note = 3;");
    const print = async (registry: ProtoRegistry, text: string): Promise<string> => {
      writeProject(project, { things: text });
      return (await bindAll(registry, project))[0]!.fingerprint;
    };
    expect(await print(wider, sql)).toBe(await print(base, sql));
    expect(await print(other, sql)).not.toBe(await print(base, sql));
    for (const reader of [
      `select ${KEYS}, payload as p ${FROM}`,
      `select * ${FROM}`,
      `select ${KEYS}, payload['name'] as name ${FROM}`,
    ]) {
      expect(await print(wider, reader), reader).not.toBe(await print(base, reader));
    }
  });
});
