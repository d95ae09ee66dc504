import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { Logger } from "pino";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import type { FromChild, ToChild } from "./ingest-child.js";

const RESTART_MS = 1_000;
/** A stop that takes longer hangs; nothing is lost by a kill. */
const STOP_MS = 60_000;
/**
 * COPY statements run on libuv's threads; a raw and a refined one of several lanes go at once. glibc's allocator gives
 * large blocks back to the kernel at once by default and faults them in again with the next batch: a fifth of
 * ingest's CPU (other allocators ignore these).
 */
const ENVIRONMENT = {
  UV_THREADPOOL_SIZE: "8",
  MALLOC_MMAP_THRESHOLD_: "33554432",
  MALLOC_TRIM_THRESHOLD_: "1073741824",
};

/**
 * Runs ingest in a process of its own, so that its work on columns never delays an acknowledgement, and starts it
 * again when it dies: progress is in the tables, nothing is handed over.
 */
export class IngestSupervisor {
  private child: ChildProcess | undefined;
  private readyNow = false;
  private stopping = false;
  private asked = 0;
  private readonly answers = new Map<number, (text: string) => void>();

  constructor(
    private readonly config: Config,
    private readonly log: Logger,
  ) {}

  get ready(): boolean {
    return this.readyNow;
  }

  /** Resolves once ingest lands events. Rejects with its error when it ends before that. */
  async start(): Promise<void> {
    const child = this.spawn();
    await new Promise<void>((resolve, reject) => {
      child.on("message", (message: FromChild) => {
        if ("ready" in message) resolve();
        else if ("failed" in message) reject(new TributaryError(message.failed.code, message.failed.message));
      });
      child.once("exit", (code) => reject(new Error(`ingest ended at its start (${code})`)));
    });
  }

  private spawn(): ChildProcess {
    const child = fork(fileURLToPath(new URL("./ingest-child.js", import.meta.url)), [], {
      env: { ...process.env, ...ENVIRONMENT },
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    this.child = child;
    child.on("message", (message: FromChild) => {
      if ("ready" in message) this.readyNow = true;
      else if ("metrics" in message) this.answers.get(message.metrics)?.(message.text);
    });
    child.on("error", (error) => this.log.error({ err: error }, "the ingest process cannot be reached"));
    child.on("exit", (code, signal) => {
      this.readyNow = false;
      for (const answer of this.answers.values()) answer("");
      if (this.stopping) return;
      this.log.error({ code, signal }, "ingest has died; starting it again");
      setTimeout(() => {
        if (!this.stopping) this.spawn();
      }, RESTART_MS);
    });
    this.send({ config: this.config });
    return child;
  }

  /** The child's metrics in text exposition format; empty while there is none. */
  async metrics(): Promise<string> {
    if (!this.readyNow) return "";
    const asked = ++this.asked;
    try {
      return await new Promise<string>((resolve) => {
        this.answers.set(asked, resolve);
        setTimeout(() => resolve(""), 1_000).unref();
        this.send({ metrics: asked });
      });
    } finally {
      this.answers.delete(asked);
    }
  }

  /** Ingest lands what it has read, then ends. */
  async stop(): Promise<void> {
    this.stopping = true;
    const { child } = this;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    const limit = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    this.send({ stop: true });
    await ended;
    clearTimeout(limit);
  }

  private send(message: ToChild): void {
    // A child that dies at this moment is dealt with at its exit; without a callback the failed send would end us.
    if (this.child?.connected) this.child.send(message, () => undefined);
  }
}
