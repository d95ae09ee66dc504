import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { protocBinary } from "../../services/contracts/protoc.js";
import { command, installed, mavenJars } from "../servers/tool.js";
import { startTestBus, type TestBus, testRegistry } from "../support/bus-server.js";

const run = promisify(execFile);
const protocPackage = dirname(createRequire(import.meta.url).resolve("protoc/package.json"));
const { version } = JSON.parse(readFileSync(join(protocPackage, "package.json"), "utf8")) as {
  version: string;
};
/** What protoc calls itself, and the libraries that know its code end in: "36.2" of the package's "36.2.0". */
const protocVersion = version.replace(/\.0$/, "");
const FILES = ["tributary/v1/bus.proto", "tributary/v1/change_event.proto", "tracker/v1/tracker.proto"];
const PROTOC_GEN_GO = "v1.36.11";

const event = testRegistry.codec("tributary.v1.ChangeEvent");
const issue = testRegistry.codec("tracker.v1.Issue");

let bus: TestBus;
let folder: string;
let env: NodeJS.ProcessEnv;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "tributary-producing-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));
beforeEach(async () => {
  bus = await startTestBus();
  const url = await bus.server.listen("127.0.0.1", 0);
  // What a language needs may have to be fetched first, which takes longer than a token of tests is good for.
  const token = await bus.bearer({ expiresIn: 900 });
  env = { ...process.env, BUS_URL: url, BUS_TOKEN: token.slice("Bearer ".length) };
  return () => bus.close();
});

/** A copy of examples/clients/<name> to build in. */
function example(name: string): string {
  const copy = join(folder, name);
  cpSync(join(packageRoot, "examples", "clients", name), copy, { recursive: true });
  mkdirSync(join(copy, "gen"), { recursive: true });
  return copy;
}

const protoc = (cwd: string, flags: readonly string[], path = process.env.PATH) =>
  run(
    protocBinary(),
    [`-I${join(packageRoot, "proto")}`, `-I${join(protocPackage, "include")}`, ...flags, ...FILES],
    { cwd, env: { ...process.env, PATH: path } },
  );

interface Stored {
  readonly tenant_id: string;
  readonly entity_type: string;
  readonly entity_id: string;
  readonly version: { toString(): string };
  readonly payload: { readonly type_url: string; readonly value: Uint8Array };
}

/** What the stream holds, as "id: summary". */
const stored = (): string[] =>
  bus.stream.stored.map(({ bytes }) => {
    const { tenant_id, entity_type, entity_id, version, payload } = event.decode(bytes) as unknown as Stored;
    expect([tenant_id, entity_type, version.toString()]).toEqual(["acme", "tracker.v1.Issue", "1"]);
    const { summary } = issue.decode(payload.value) as unknown as { summary: string };
    return `${entity_id}: ${summary}`;
  });

/**
 * Runs it against a bus that first is down, then refuses one event of the request for now: each event is stored, and
 * told of once.
 */
async function publishes(language: string, program: string, args: readonly string[], cwd: string) {
  let appends = 0;
  bus.stream.refuses = (i) => bus.stream.appends === 2 && i === 1;
  bus.stream.down = true;
  const up = setInterval(() => {
    appends = bus.stream.appends;
    if (appends > 0) bus.stream.down = false;
  }, 1);
  const { stdout } = await run(program, args, { cwd, env }).finally(() => clearInterval(up));
  const keys = ["PAY-1", "PAY-2", "PAY-3"];
  expect(new Set(stored())).toEqual(new Set(keys.map((key) => `${key}: From ${language}`)));
  const told = stdout.trim().split("\n");
  expect(told.map((line) => line.split(" ")[0]).sort()).toEqual(keys);
  const places = new Set(bus.stream.stored.map(({ partition, position }) => `${partition} ${position}`));
  expect(told.filter((line) => !places.has(line.split(" ").slice(1).join(" ")))).toEqual([]);
}

/** A wrong token is told of, and ends it. */
async function isRefused(program: string, args: readonly string[], cwd: string) {
  const failed = run(program, args, { cwd, env: { ...env, BUS_TOKEN: "wrong" } });
  await expect(failed).rejects.toThrow("TRB-AUTH-INVALID");
}

describe("examples/clients", () => {
  it("curl", async () => {
    const script = join(packageRoot, "examples", "clients", "curl", "publish.sh");
    const { stdout } = await run("sh", [script], { env });
    expect(JSON.parse(stdout)).toMatchObject({ accepted: 1, results: [{ accepted: true }] });
    expect(stored()).toEqual(["PAY-1: From curl"]);
    const wrong = run("sh", [script], { env: { ...env, BUS_TOKEN: "wrong" } });
    await expect(wrong).rejects.toMatchObject({ stdout: expect.stringContaining("TRB-AUTH-INVALID") });
  });

  it("Python", async () => {
    // protoc 36.2 makes code for protobuf 7.36.2 or later.
    const venv = await installed(`python-protobuf-7.${protocVersion}`, async (making) => {
      await command("python3", ["-m", "venv", making]);
      const pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
      await command(join(making, "bin", "python"), [...pip, `protobuf==7.${protocVersion}`]);
    });
    const cwd = example("python");
    await protoc(cwd, ["--python_out=gen"]);
    env = { ...env, PYTHONPATH: join(cwd, "gen") };
    const python = join(venv, "bin", "python");
    await publishes("Python", python, ["publish.py"], cwd);
    await isRefused(python, ["publish.py"], cwd);
  });

  it("Java", async () => {
    const artifact = `com.google.protobuf:protobuf-java:4.${protocVersion}`;
    const jars = await mavenJars(`protobuf-java-4.${protocVersion}`, [artifact]);
    const cwd = example("java");
    await protoc(cwd, ["--java_out=gen"]);
    await run("javac", ["-cp", `${jars}/*`, "-sourcepath", "gen", "-d", "classes", "Publish.java"], { cwd });
    const args = ["-cp", `classes:${jars}/*`, "Publish"];
    await publishes("Java", "java", args, cwd);
    await isRefused("java", args, cwd);
  });

  it("Go", async () => {
    const plugin = await installed(`protoc-gen-go-${PROTOC_GEN_GO}`, async (making) => {
      const name = `google.golang.org/protobuf/cmd/protoc-gen-go@${PROTOC_GEN_GO}`;
      await run("go", ["install", name], { env: { ...process.env, GOBIN: making } });
    });
    const cwd = example("go");
    const module = "example.com/publish";
    const mapped = ["tributary/v1/bus", "tributary/v1/change_event", "tracker/v1/tracker"].map(
      (name) => `--go_opt=M${name}.proto=${module}/gen/${name.split("/")[0]}v1`,
    );
    await protoc(
      cwd,
      ["--go_out=.", `--go_opt=module=${module}`, ...mapped],
      `${plugin}:${process.env.PATH}`,
    );
    await run("go", ["build", "-o", "publish", "."], { cwd });
    await publishes("Go", "./publish", [], cwd);
    await isRefused("./publish", [], cwd);
  });
});
