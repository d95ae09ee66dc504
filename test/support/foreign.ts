import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { packageRoot } from "../../services/base/paths.js";

const run = promisify(execFile);
const scripts = join(packageRoot, "test", "foreign");
const limits = { maxBuffer: 1024 * 1024 * 1024 };

/** Where .ci/run puts what is too large for a project's folder: Sparks, their jars. */
const tools = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "tributary-tools");

/** A Python with the packages of test/requirements.txt; .ci/run makes one. */
function python(): string {
  const path = process.env.TEST_PYTHON ?? join(packageRoot, ".venv", "bin", "python");
  if (!existsSync(path)) {
    throw new Error("no Python with deltalake: run .ci/run once, or set TEST_PYTHON");
  }
  return path;
}

/** Standard output of a script of test/foreign. */
export async function runForeign(script: string, ...args: readonly string[]): Promise<string> {
  const { stdout } = await run(python(), [join(scripts, script), ...args], limits);
  return stdout;
}

/** Rows of a Delta table as an engine that is not ours reads them. `sql` reads the table `t`. */
export async function readForeign(
  folder: string,
  sql = "SELECT * FROM t",
  env: NodeJS.ProcessEnv = {},
): Promise<Record<string, unknown>[]> {
  const { stdout } = await run(python(), [join(scripts, "foreign_reader.py"), folder, sql], {
    ...limits,
    env: { ...process.env, ...env },
  });
  return rowsOfLines(stdout);
}

const rowsOfLines = (text: string): Record<string, unknown>[] =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

export interface Digest {
  readonly rows: number;
  readonly digest: string;
}

/** What the oracle says of a table. */
export interface Answer {
  readonly versions: Readonly<Record<string, Digest>>;
  /** The same with times to the millisecond. */
  readonly milliseconds: Readonly<Record<string, Digest>>;
  readonly newest: number;
  readonly checkpointed: boolean;
  /** Live files with a deletion vector. */
  readonly vectors: number;
  readonly filters: readonly { readonly rows: number; readonly time: boolean }[];
  readonly bounds: Readonly<Record<string, unknown>>;
  readonly times: readonly number[];
}

/** What a reader says of it; the rows that each filter finds in its order, and bounds by column, where it was asked. */
export interface Reading {
  readonly versions: Readonly<Record<string, Digest>>;
  readonly filters?: readonly number[];
  readonly bounds?: Readonly<Record<string, unknown>>;
}

type Answers = Readonly<Record<string, Answer>>;

const pairsOf = (answers: Answers): (readonly [string, string])[] =>
  Object.entries(answers).flatMap(([name, { versions }]) =>
    Object.keys(versions).map((version) => [name, version] as const),
  );

function readingsOf(
  pairs: readonly (readonly [string, string])[],
  digests: readonly Digest[],
): Record<string, Record<string, Digest>> {
  const readings: Record<string, Record<string, Digest>> = {};
  for (const [index, [name, version]] of pairs.entries()) {
    readings[name] = { ...readings[name], [version]: digests[index]! };
  }
  return readings;
}

/** Delta Kernel, which comes with the jars of the newer Spark. */
export async function kernelReader(lake: string, answers: Answers): Promise<Record<string, Reading>> {
  const pairs = pairsOf(answers);
  const { stdout } = await run(
    "java",
    [
      "-cp",
      join(tools, "jars-spark4", "jars", "*"),
      join(scripts, "KernelReader.java"),
      ...pairs.flatMap(([name, version]) => [join(lake, name), version]),
    ],
    limits,
  );
  const digests = stdout
    .trim()
    .split("\n")
    .map((line) => ({ rows: Number(line.split(" ")[0]), digest: line.split(" ")[1]! }));
  const readings = readingsOf(pairs, digests);
  return Object.fromEntries(Object.entries(readings).map(([name, versions]) => [name, { versions }]));
}

export interface SparkTold {
  readonly readings: Record<string, Reading>;
  /** Times of the commits by Spark's history, oldest first. */
  readonly times: Readonly<Record<string, readonly number[]>>;
  /** What became of each attempt to write. */
  readonly attempts: Readonly<Record<string, string>>;
}

/** Of jars that Spark fetches when it first needs them. */
const FETCHES = 3;

/** Runs a script by the Python of a Spark, which keeps its jars in the tools' folder `ivy`. */
async function runBySpark(
  release: "35" | "4",
  ivy: string,
  args: readonly string[],
  options: { readonly env?: NodeJS.ProcessEnv; readonly cwd?: string } = {},
): Promise<{ readonly stdout: string }> {
  const path = join(tools, `spark${release}`, "bin", "python");
  if (!existsSync(path)) throw new Error(`no Spark ${release}: run .ci/run once`);
  const folder = join(tools, ivy);
  // Maven keeps descriptions of artifacts at home whose jars it did not need; there Spark would look first, and fail.
  const homeless = { TEST_IVY: folder, SPARK_SUBMIT_OPTS: `-Duser.home=${folder}` };
  const env = { ...process.env, ...options.env, ...homeless };
  for (let fetch = 1; ; fetch++) {
    try {
      return await run(path, args, { ...limits, ...options, env });
    } catch (error) {
      const failed = /download failed|unresolved dependency/.test(
        (error as { stderr?: string }).stderr ?? "",
      );
      if (!failed || fetch === FETCHES) throw error;
    }
  }
}

/** Spark reads all tables, then tries to write to them. */
export async function runSpark(release: "35" | "4", lake: string, answers: string): Promise<SparkTold> {
  const out = await mkdtemp(join(tmpdir(), "tributary-spark-"));
  try {
    await mkdir(join(out, "parquet"));
    await runBySpark(release, `jars-spark${release}`, [join(scripts, "read_spark.py"), lake, answers, out]);
    const told = JSON.parse(await readFile(join(out, "told.json"), "utf8"));
    const digests = JSON.parse(await runForeign("digest_parquet.py", join(out, "parquet"))) as Digest[];
    const readings: Record<string, Reading> = {};
    for (const [name, versions] of Object.entries(readingsOf(told.reads, digests))) {
      readings[name] = { versions, filters: told.filters[name], bounds: told.bounds[name] };
    }
    return { readings, times: told.times, attempts: told.attempts };
  } finally {
    await rm(out, { recursive: true, force: true });
  }
}

/** Standard output of a Python script that uses Spark 3.5, which knows s3a:// addresses. */
export async function runSparkScript(
  script: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<string> {
  // Jars of their own: those beside the other Spark are Delta Kernel's, too.
  const { stdout } = await runBySpark("35", "jars-spark35-s3", [script, ...args], {
    env: { ...env, TZ: "UTC" },
  });
  return stdout;
}

/**
 * Rows of tables at s3a:// addresses, as one Spark reads them.
 * `env`: credentials, as the SDK's chain finds them.
 */
export async function readBySpark(
  endpoint: string,
  tables: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<Record<string, unknown>[][]> {
  const out = await mkdtemp(join(tmpdir(), "tributary-spark-"));
  try {
    await runSparkScript(join(scripts, "read_spark_s3.py"), [endpoint, out, ...tables], env);
    return await Promise.all(
      tables.map(async (_, at) => rowsOfLines(await readFile(join(out, `${at}.ndjson`), "utf8"))),
    );
  } finally {
    await rm(out, { recursive: true, force: true });
  }
}

/** By model, of dbt's table and of ours: by tenant, digests of each column together with the keys. */
export type Built = Record<
  string,
  Record<"dbt" | "ours", Readonly<Record<string, Readonly<Record<string, Digest>>>>>
>;

/** dbt on the newer Spark builds the models of a project over the raw tables of a lake. */
export async function buildOnSpark(
  project: string,
  lake: string,
  models: Readonly<Record<string, { readonly folder: string; readonly columns: readonly string[] }>>,
): Promise<Built> {
  const out = await mkdtemp(join(tmpdir(), "tributary-spark-"));
  try {
    const args = [project, join(lake, "raw"), join(lake, "refined"), out, JSON.stringify(models)];
    await runBySpark("4", "jars-spark4", [join(scripts, "build_spark.py"), ...args], { cwd: out });
    return JSON.parse(await runForeign("digest_tenants.py", out)) as Built;
  } finally {
    await rm(out, { recursive: true, force: true });
  }
}

export interface TrinoTold {
  readonly readings: Record<string, { versions: Record<string, Digest>; integerFilters: readonly number[] }>;
  /** What became of each attempt to write. */
  readonly attempts: Readonly<Record<string, string>>;
}

/** Trino reads all tables, then tries to write to them. */
export async function runTrino(lake: string, answers: string): Promise<TrinoTold> {
  const folder = join(tools, "trino");
  const path = join(folder, "venv", "bin", "python");
  if (!existsSync(path)) throw new Error("no Trino: run .ci/nightly once");
  const { stdout } = await run(
    path,
    [join(scripts, "read_trino.py"), join(folder, "server"), lake, answers],
    limits,
  );
  return JSON.parse(stdout) as TrinoTold;
}
