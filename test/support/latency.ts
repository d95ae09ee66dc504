import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import http from "node:http";
import { createInterface } from "node:readline";

/** The value below which `share` (0 to 1) of them lie. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

/** Milliseconds that GET takes over one kept connection, asked again and again until `stop`. */
export class Probe {
  readonly latencies: number[] = [];
  private readonly agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  private readonly running: Promise<void>;
  private stopped = false;

  constructor(url: string, everyMs = 5) {
    this.running = (async () => {
      while (!this.stopped) {
        this.latencies.push(await this.ask(url));
        await new Promise((resolve) => setTimeout(resolve, everyMs));
      }
    })();
  }

  async stop(): Promise<readonly number[]> {
    this.stopped = true;
    await this.running;
    this.agent.destroy();
    return this.latencies;
  }

  private ask(url: string): Promise<number> {
    const started = performance.now();
    return new Promise((resolve, reject) => {
      http
        .get(url, { agent: this.agent }, (response) => {
          response.resume().on("end", () => {
            if (response.statusCode === 200) resolve(performance.now() - started);
            else reject(new Error(`answered ${response.statusCode}`));
          });
        })
        .on("error", reject);
    });
  }
}

/** A server in a process of its own that does nothing but answer: what it takes long for, the machine is to blame for. */
export async function startIdleServer(): Promise<{ url: string; process: ChildProcess }> {
  const code =
    'const s=require("http").createServer((q,r)=>r.end("{}")).listen(0,"127.0.0.1",()=>console.log(s.address().port));' +
    'process.stdin.on("end",()=>process.exit()).resume();';
  const child = spawn(process.execPath, ["-e", code], { stdio: ["pipe", "pipe", "inherit"] });
  const [port] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
  return { url: `http://127.0.0.1:${port}/`, process: child };
}

/** Highest resident memory of a process so far, in bytes. */
export function peakBytes(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024;
}
