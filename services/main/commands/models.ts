import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Command, Option } from "commander";
import type { Config } from "../../base/config.js";
import type { Duck } from "../../base/duckdb.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { loadProject, type Project } from "../../ingest/project.js";
import { refinedRoot } from "../../ingest/refined-table.js";
import { loadModels, type Model } from "../../models/project.js";
import { checkSpark, type SparkFinding } from "../../models/spark-check.js";
import { SPARK_MACRO, sparkMacro } from "../../models/spark-macro.js";
import { type TestResult, testModel } from "../../models/test-models.js";
import type { ObjectStore } from "../../storage/object-store.js";
import { DeltaTable } from "../../table/delta-table.js";
import { withScan } from "../../table/scan.js";
import { mayHaveLake, readingDuck, withStore } from "../compose/runtime.js";
import { textTable } from "../terminal/text-table.js";
import { configOf, type DataOptions, withData } from "./options.js";
import { explain, LakeState } from "./table-state.js";

export function addModelCommands(program: Command): void {
  const group = program.command("models").description("the refined tables' SQL models");
  withData(group.command("ls"))
    .description("list the models of the dbt project, and how their tables are doing")
    .action(async (options: DataOptions) => list(options));
  withData(group.command("check"))
    .description("bind every model against its descriptors; exit code 1 when one does not fit")
    .addOption(new Option("--target <engine>", "tell also what means another thing there").choices(["spark"]))
    .action(async (options: CheckOptions) => check(options));
  withData(group.command("spark"))
    .description("write the macro by which dbt on Spark and Databricks decodes payloads")
    .option("--out <file>", `where to (default: ${SPARK_MACRO} of the dbt project)`)
    .action((options: SparkOptions) => spark(options));
  withData(group.command("test"))
    .description("run the tests of schema.yml over the lake; exit code 1 when one fails")
    .action(async (options: DataOptions) => test(options));
}

const brief = ({ name, entityType, description }: Model) => ({ name, entityType, description });

async function list(options: DataOptions): Promise<void> {
  const config = configOf(options);
  // Models can be listed before there is a lake.
  const state = mayHaveLake(config)
    ? await withStore(config, (store) => LakeState.read(store))
    : LakeState.unknown;
  const models = loadModels(config.transformsDir).map((model) => ({
    ...brief(model),
    ...state.of(model.name),
  }));
  if (options.json) {
    console.log(JSON.stringify({ models }));
    return;
  }
  const rows = models.map((m) => [m.name, m.entityType, m.state, m.description]);
  console.log(textTable(["model", "source", "state", "description"], rows));
  for (const model of models) if (model.state !== "ok") console.log(`\n${explain(model.name, model)}`);
}

interface CheckOptions extends DataOptions {
  readonly target?: "spark";
}

async function check(options: CheckOptions): Promise<void> {
  const config = configOf(options);
  const duck = await readingDuck();
  try {
    const project = await loadProject(config, duck);
    const { models, broken } = project;
    const findings = options.target === undefined ? undefined : await sparkFindings(duck, project);
    const found = (name: string) => findings?.filter(({ model }) => model === name);
    const results = [
      ...models.map(({ name, columns }) => ({
        model: name,
        columns: columns.length,
        error: undefined,
        spark: found(name)?.map(({ place, found, instead }) => ({ place, found, instead })),
      })),
      ...broken.map(({ name, error }) => ({ model: name, columns: undefined, error: error.message })),
    ].sort((a, b) => (a.model < b.model ? -1 : 1));
    if (options.json) console.log(JSON.stringify({ models: results }));
    else for (const result of results) console.log(lineOf(result));
    if (broken.length > 0 || (findings?.length ?? 0) > 0) process.exitCode = 1;
  } finally {
    duck.close();
  }
}

interface CheckResult {
  readonly model: string;
  readonly columns: number | undefined;
  readonly error: string | undefined;
  readonly spark?: readonly { place: string; found: string; instead: string }[] | undefined;
}

function lineOf({ model, columns, error, spark = [] }: CheckResult): string {
  if (error !== undefined) return error;
  if (spark.length === 0) return `${model}: ok, ${columns} columns`;
  return spark
    .map(({ place, found, instead }) => `${place}: not the same on Spark: ${found}; instead: ${instead}`)
    .join("\n");
}

async function sparkFindings(duck: Duck, { models, registry }: Project): Promise<SparkFinding[]> {
  const findings: SparkFinding[] = [];
  await duck.with(async (connection) => {
    for (const model of models) {
      findings.push(...(await checkSpark(connection, registry.entityType(model.entityType)!, model)));
      if (models.some((other) => other !== model && other.table === model.table)) {
        const instead = "a name of its own: dbt knows models without their domain";
        findings.push({
          model: model.name,
          place: model.file,
          found: "a name that another model has",
          instead,
        });
      }
    }
  });
  return findings;
}

interface SparkOptions extends DataOptions {
  readonly out?: string;
}

function spark(options: SparkOptions): void {
  const config = configOf(options);
  const registry = ProtoRegistry.load(config.protoDirs, config.protoDescriptors);
  const models = loadModels(config.transformsDir);
  const file = options.out ?? join(config.transformsDir, SPARK_MACRO);
  writeFileSync(file, sparkMacro(registry, models));
  const entityTypes = [...new Set(models.map(({ entityType }) => entityType))].sort();
  console.log(options.json ? JSON.stringify({ file, entityTypes }) : `${file}: ${entityTypes.join(", ")}`);
}

async function test(options: DataOptions): Promise<void> {
  const config = configOf(options);
  const results = await withStore(config, (store) => testAll(config, store));
  if (options.json) console.log(JSON.stringify({ results }));
  else if (results.length === 0) console.log("no table of a model is there yet");
  else {
    const rows = results.map((r) => [
      r.model,
      r.column,
      r.test,
      r.failures === 0 ? "ok" : `${r.failures} rows fail`,
    ]);
    console.log(textTable(["model", "column", "test", ""], rows));
  }
  if (results.some(({ failures }) => failures > 0)) process.exitCode = 1;
}

async function testAll(config: Config, store: ObjectStore): Promise<TestResult[]> {
  const duck = await readingDuck();
  try {
    const results: TestResult[] = [];
    for (const model of loadModels(config.transformsDir)) {
      const table = await DeltaTable.open(store, refinedRoot(model), duck, {
        checkpointEvery: config.table.checkpointEvery,
      });
      if (table === undefined) continue;
      results.push(
        ...(await withScan(table, table.snapshot, {}, (rows) =>
          duck.with((connection) => testModel(connection, model, rows)),
        )),
      );
    }
    return results;
  } finally {
    duck.close();
  }
}
