import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { FromLoad, LoadOrder, LoadReport } from "./load.js";

export const CLI = fileURLToPath(new URL("../services/main/cli.js", import.meta.url));

/** What is below this process must not outlive it, however it ends (a time limit's SIGTERM too), nor what it has made. */
const children = new Set<ChildProcess>();
const folders = new Set<string>();
process.on("exit", () => {
  for (const child of children) {
    for (const pid of [child.pid!, ...childrenOf(child.pid!)]) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended.
      }
    }
  }
  // What is being killed may still write.
  if (children.size > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300);
  for (const folder of folders) rmSync(folder, { recursive: true, force: true, maxRetries: 10 });
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.once(signal, () => process.exit(128 + constants.signals[signal]));
}

export function adopted(child: ChildProcess): ChildProcess {
  children.add(child);
  child.once("exit", () => children.delete(child));
  return child;
}

/** A folder that is removed when this process ends. */
export function benchFolder(name: string): string {
  const folder = mkdtempSync(join(tmpdir(), `tributary-${name}-`));
  folders.add(folder);
  return folder;
}

/** A server process of the built command line. */
export class BenchServer {
  private constructor(
    private readonly child: ChildProcess,
    readonly url: string,
  ) {}

  get pid(): number {
    return this.child.pid!;
  }

  static async start(
    command: string,
    data: string,
    env: NodeJS.ProcessEnv = {},
    more: readonly string[] = [],
  ): Promise<BenchServer> {
    const child = adopted(
      spawn(process.execPath, [CLI, command, "--data", data, "--port", "0", "--json", ...more], {
        env: { ...process.env, TRIBUTARY_LOG__LEVEL: "error", ...env },
        stdio: ["ignore", "pipe", "inherit"],
      }),
    );
    const [line] = (await once(createInterface({ input: child.stdout! }), "line")) as [string];
    return new BenchServer(child, (JSON.parse(line) as { url: string }).url);
  }

  /** CPU seconds of the process itself and of each process below it, by command. */
  cpu(): CpuSeconds {
    const own = cpuOf(this.child.pid!);
    const below = childrenOf(this.child.pid!).reduce((sum, pid) => sum + cpuOf(pid), 0);
    return { own, below };
  }

  /** Highest resident memory so far, in bytes: of the process, of ingest, and of all else below it. */
  peaks(): Peaks {
    const peaks = { own: peakOf(this.child.pid!), ingest: 0, others: 0 };
    for (const pid of childrenOf(this.child.pid!)) {
      peaks[commandOf(pid).includes("ingest-child") ? "ingest" : "others"] += peakOf(pid);
    }
    return peaks;
  }

  peakBytes(): number {
    const { own, ingest, others } = this.peaks();
    return own + ingest + others;
  }

  async stop(): Promise<void> {
    const ended = once(this.child, "exit");
    this.child.kill("SIGTERM");
    await ended;
  }

  /** Ends it as a power cut does; what is below it goes by itself. */
  async kill(): Promise<void> {
    const ended = once(this.child, "exit");
    this.child.kill("SIGKILL");
    await ended;
  }
}

export interface Peaks {
  readonly own: number;
  readonly ingest: number;
  readonly others: number;
}

export interface CpuSeconds {
  readonly own: number;
  readonly below: number;
}

const TICKS = 100;

/** User and system time; 0 where there is no /proc. */
export function cpuOf(pid: number): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /, "")
      .split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS;
  } catch {
    return 0;
  }
}

export function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return "";
  }
}

function peakOf(pid: number): number {
  try {
    return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

export function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((task) =>
      readFileSync(`/proc/${pid}/task/${task}/children`, "utf8").split(" ").filter(Boolean).map(Number),
    );
  } catch {
    return [];
  }
}

/** A load generator that has encoded its events and waits for the word. */
export class Load {
  private constructor(private readonly child: ChildProcess) {}

  static async prepare(order: LoadOrder): Promise<Load> {
    const child = adopted(fork(fileURLToPath(new URL("./load.js", import.meta.url))));
    child.send({ order });
    await message(child, (m) => "encoded" in m);
    return new Load(child);
  }

  async run(): Promise<LoadReport> {
    this.child.send({ go: true });
    const answer = await message(this.child, (m) => "report" in m);
    this.child.disconnect();
    return (answer as { report: LoadReport }).report;
  }
}

async function message(child: ChildProcess, wanted: (m: FromLoad) => boolean): Promise<FromLoad> {
  return new Promise((resolve, reject) => {
    child.on("message", (m: FromLoad) => {
      if (wanted(m)) resolve(m);
    });
    child.once("exit", (code) => reject(new Error(`the load generator ended (${code})`)));
  });
}
