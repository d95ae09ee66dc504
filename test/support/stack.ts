import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { withRefined } from "../../bench/in-step.js";
import { loadConfig } from "../../services/base/config.js";
import { layout, packageRoot } from "../../services/base/paths.js";
import { CONSUMER } from "../../services/ingest/pipeline.js";
import { caughtUp } from "../../services/stream/caught-up.js";
import { EmbeddedLogReader } from "../../services/stream/embedded/reader.js";

/** The built command line, as an operator runs it: real processes on a data folder of their own. */

const CLI = join(packageRoot, "dist", "services", "main", "cli.js");
const run = promisify(execFile);

export interface CliResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command to its end. */
export async function cli(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<CliResult> {
  try {
    const { stdout, stderr } = await run(process.execPath, [CLI, ...args], {
      env: { ...process.env, ...env },
      maxBuffer: 256 * 1024 * 1024,
    });
    return { code: 0, stdout, stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code?: number; stdout?: string; stderr?: string };
    return { code: code ?? -1, stdout: stdout ?? "", stderr: stderr ?? String(error) };
  }
}

export class Server {
  private log = "";

  private constructor(
    readonly process: ChildProcess,
    readonly url: string,
  ) {}

  /** Starts `tributary <command>`, on a free port by default, and waits until it listens. */
  static async start(
    command: "up" | "bus" | "ingest" | "query",
    data: string,
    env: NodeJS.ProcessEnv = {},
    port = 0,
    config?: string,
  ): Promise<Server> {
    const more = config === undefined ? [] : ["--config", config];
    const args = [CLI, command, "--data", data, "--port", `${port}`, "--json", ...more];
    const child = spawn(process.execPath, args, {
      env: { ...process.env, TRIBUTARY_LOG__LEVEL: "warn", ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let log = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      log += text;
    });
    const lines = createInterface({ input: child.stdout });
    const first = await Promise.race([
      once(lines, "line").then(([line]) => String(line)),
      once(child, "exit").then(() => undefined),
    ]);
    if (first === undefined) throw new Error(`tributary ${command} did not start:\n${log}`);
    const server = new Server(child, (JSON.parse(first) as { url: string }).url);
    child.stderr.on("data", () => {
      server.log = log;
    });
    return server;
  }

  get stderr(): string {
    return this.log;
  }

  get running(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  /** kill -9, and the children with it where they outlive their parent for a moment. */
  async kill(): Promise<void> {
    if (!this.running) return;
    const ended = once(this.process, "exit");
    this.process.kill("SIGKILL");
    await ended;
  }

  /** SIGTERM; resolves to the exit code. */
  async stop(): Promise<number | null> {
    if (!this.running) return this.process.exitCode;
    const ended = once(this.process, "exit");
    this.process.kill("SIGTERM");
    const [code] = (await ended) as [number | null];
    return code;
  }
}

export const temporaryFolder = (): Promise<string> => mkdtemp(join(tmpdir(), "tributary-"));
export const removeFolder = (folder: string): Promise<void> => rm(folder, { recursive: true, force: true });

export async function makeToken(data: string, role: string, tenant = "*"): Promise<string> {
  const grant = ["--role", role, "--tenant", tenant];
  const { stdout, code, stderr } = await cli(["token", "--create", "--data", data, ...grant]);
  if (code !== 0) throw new Error(stderr);
  return stdout.trim();
}

/** Waits until `check` holds. Fails after `seconds`. */
export async function until(what: string, check: () => Promise<boolean>, seconds = 60): Promise<void> {
  const end = Date.now() + seconds * 1000;
  while (!(await check())) {
    if (Date.now() > end) throw new Error(`timed out: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/**
 * Waits until everything the bus has acknowledged on this data folder is in the tables. `env`: what the server was
 * started with, where that says where the tables are.
 */
export async function untilLanded(data: string, seconds = 120, env: NodeJS.ProcessEnv = {}): Promise<void> {
  const reader = await EmbeddedLogReader.open({ folder: layout(data).stream });
  try {
    await until("events to land", () => caughtUp(reader, CONSUMER), seconds);
    // What the stream may forget is in raw; a model may still be at it.
    await withRefined(loadConfig({ data }, { env }), (inStep) =>
      until("models to take them in", inStep, seconds),
    );
  } finally {
    await reader.close();
  }
}
