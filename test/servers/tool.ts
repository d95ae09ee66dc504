import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** Where foreign servers are installed, for all runs; CI keeps it. */
export const toolsDir = process.env.TOOLS_DIR ?? join(homedir(), ".cache", "tributary-tools");

/** Runs a command to its end; fails with what it printed. */
export async function command(program: string, args: readonly string[], cwd?: string): Promise<void> {
  const child = spawn(program, args, { cwd, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  child.stdout.on("data", (bytes: Buffer) => (text += bytes.toString()));
  child.stderr.on("data", (bytes: Buffer) => (text += bytes.toString()));
  const [code] = (await once(child, "close")) as [number | null];
  if (code !== 0) throw new Error(`${program} ${args[0] ?? ""} ended with ${code}: ${text.slice(-2_000)}`);
}

/**
 * Installs a tool once: `make` fills a folder that then takes its name, so that what was broken off is never used and
 * of several at once one result stands.
 */
export async function installed(name: string, make: (folder: string) => Promise<void>): Promise<string> {
  const folder = join(toolsDir, name);
  if (existsSync(folder)) return folder;
  const making = join(toolsDir, `${name}.${process.pid}.making`);
  rmSync(making, { recursive: true, force: true });
  mkdirSync(making, { recursive: true });
  try {
    await make(making);
    try {
      renameSync(making, folder);
    } catch (error) {
      // Another run was faster.
      if (!existsSync(folder)) throw error;
    }
  } finally {
    rmSync(making, { recursive: true, force: true });
  }
  return folder;
}

/** A package with its dependencies, without their scripts. */
export const npmPackage = (name: string, version: string): Promise<string> =>
  installed(`${name}-${version}`, async (folder) => {
    const flags = ["--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"];
    await command("npm", ["install", "--prefix", folder, ...flags, `${name}@${version}`]);
  }).then((folder) => join(folder, "node_modules", name));

const COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/** Folder with the jars of artifacts (group:artifact:version) and of all that they need, but those `without` (group:artifact). */
export const mavenJars = (
  name: string,
  artifacts: readonly string[],
  without: readonly string[] = [],
): Promise<string> =>
  installed(name, async (folder) => {
    const exclusions = without.map((one) => `<exclusion>${coordinates(one)}</exclusion>`).join("");
    const dependencies = artifacts.map(
      (one) => `<dependency>${coordinates(one)}<exclusions>${exclusions}</exclusions></dependency>`,
    );
    const pom = join(folder, "pom.xml");
    writeFileSync(
      pom,
      `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
       <groupId>tributary</groupId><artifactId>tools</artifactId><version>1</version><dependencies>
       ${dependencies.join("\n")}</dependencies></project>`,
    );
    const flags = ["-q", "-B", "-ntp", "-f", pom, "-DincludeScope=runtime", `-DoutputDirectory=${folder}`];
    await command("mvn", [...flags, COPY_JARS], folder);
  });

function coordinates(artifact: string): string {
  const [group, id, version] = artifact.split(":");
  const pinned = version === undefined ? "" : `<version>${version}</version>`;
  return `<groupId>${group}</groupId><artifactId>${id}</artifactId>${pinned}`;
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

export interface RunningTool {
  readonly process: ChildProcess;
  /** Ends it, at once when it does not end by itself. */
  stop(): Promise<void>;
}

/** Starts a server and waits until `ready` says so. */
export async function startTool(options: {
  readonly program: string;
  readonly args: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly log: string;
  readonly ready: () => Promise<boolean>;
  readonly seconds?: number;
}): Promise<RunningTool> {
  const { program, args, env, log, ready, seconds = 60 } = options;
  mkdirSync(dirname(log), { recursive: true });
  const out = openSync(log, "w");
  const child = spawn(program, args, {
    cwd: dirname(log),
    env: { ...process.env, ...env },
    stdio: ["ignore", out, out],
  });
  const ended = once(child, "exit").catch(() => undefined);
  const kill = () => child.kill("SIGKILL");
  process.once("exit", kill);
  const stop = async () => {
    process.off("exit", kill);
    child.kill("SIGTERM");
    const limit = setTimeout(kill, 5_000);
    await ended;
    clearTimeout(limit);
  };
  for (const end = Date.now() + seconds * 1_000; Date.now() < end; await sleep(100)) {
    if (child.exitCode !== null || child.signalCode !== null) break;
    if (await ready().catch(() => false)) return { process: child, stop };
  }
  await stop();
  throw new Error(`${program} did not start: ${readFileSync(log, "utf8").slice(-2_000)}`);
}

/** Whether anything answers HTTP there. */
export const answers = async (endpoint: string): Promise<boolean> =>
  (await fetch(endpoint, { signal: AbortSignal.timeout(1_000) })).status > 0;
