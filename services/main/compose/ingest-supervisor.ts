import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import type { Logger } from "pino";
import type { Config } from "../../base/config.js";
import { Retry } from "../../base/retry.js";
import type { Project } from "../../ingest/project.js";
import type { FromChild, ToChild } from "./ingest-child.js";
import { forkLimited, OTHER_BYTES } from "./limited-process.js";

/** After a run as long as this the first pause is short again. */
const LONG_MS = 60_000;
/** A stop that takes longer hangs; nothing is lost by a kill. */
const STOP_MS = 60_000;
const dataBytes = ({ ingest }: Config): number =>
  ingest.duckdbMemoryBytes + ingest.keyIndexBytes + OTHER_BYTES;

/**
 * Runs ingest in a process of its own, so that its work on columns never delays an acknowledgement, and starts it
 * again when it dies: progress is in the tables, nothing is handed over.
 */
export class IngestSupervisor {
  private child: ChildProcess | undefined;
  private readyNow = false;
  private reason = "ingest is starting";
  private running: Promise<void> | undefined;
  private readonly stopping = new AbortController();
  private readonly retry = new Retry(this.stopping.signal);
  private asked = 0;
  private readonly answers = new Map<number, (text: string) => void>();
  private replaced = false;

  constructor(
    private readonly config: Config,
    private project: Project,
    private readonly log: Logger,
  ) {}

  get ready(): boolean {
    return this.readyNow;
  }

  /** In words: "running", or why it is not. */
  get state(): string {
    return this.readyNow ? "running" : this.reason;
  }

  /** Starts ingest, and starts it again with growing pauses whenever it ends; returns at once. */
  start(): void {
    this.running = this.keepRunning();
  }

  private async keepRunning(): Promise<void> {
    while (!this.stopping.signal.aborted) {
      await this.retry
        .run(
          async () => {
            const started = performance.now();
            do {
              this.replaced = false;
              await this.runOnce();
            } while (this.replaced && !this.stopping.signal.aborted);
            // One that ran for long begins with short pauses again.
            if (performance.now() - started < LONG_MS) throw new Error("ingest has ended");
          },
          ({ pauseMs }) =>
            this.log.error({ pauseMs, reason: this.reason }, "ingest does not run; starting it again"),
        )
        // It was told to stop.
        .catch(() => undefined);
    }
  }

  /** Runs a child until it ends. */
  private async runOnce(): Promise<void> {
    this.reason = "ingest is starting";
    const child = forkLimited("ingest-child.js", dataBytes(this.config));
    this.child = child;
    let failed: string | undefined;
    child.on("message", (message: FromChild) => {
      if ("ready" in message) this.readyNow = true;
      else if ("failed" in message) failed = `ingest: ${message.failed.code}: ${message.failed.message}`;
      else this.answers.get(message.metrics)?.(message.text);
    });
    child.on("error", (error) => this.log.error({ err: error }, "the ingest process cannot be reached"));
    const { registry, models } = this.project;
    this.send({ config: this.config, descriptors: registry.bytes(), models });
    const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
    this.readyNow = false;
    this.reason = failed ?? `ingest has ended (${signal ?? code})`;
    for (const answer of this.answers.values()) answer("");
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

  /** Goes on with another project: ingest lands what it has read by the old one, then begins again. */
  use(project: Project): void {
    this.project = project;
    this.replaced = true;
    const { child } = this;
    if (child === undefined) return;
    const limit = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    limit.unref();
    child.once("exit", () => clearTimeout(limit));
    this.send({ stop: true });
  }

  /** Ingest lands what it has read, then ends. */
  async stop(): Promise<void> {
    this.stopping.abort();
    const { child } = this;
    if (child !== undefined && child.exitCode === null && child.signalCode === null) {
      const limit = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
      this.send({ stop: true });
      await this.running;
      clearTimeout(limit);
    }
    await this.running;
  }

  private send(message: ToChild): void {
    // A child that dies at this moment is dealt with at its exit; without a callback the failed send would end us.
    if (this.child?.connected === true) this.child.send(message, () => undefined);
  }
}
