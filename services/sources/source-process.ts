import type { ChildProcess } from "node:child_process";
import { join } from "node:path";
import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { forkKillable, residentBytes } from "../base/killable.js";
import { packageRoot } from "../base/paths.js";
import type { Reject } from "./formats.js";
import type { ReaderOptions, Reply, Request, Results } from "./protocol.js";

/** The compiled worker: a child process needs JavaScript, also when the parent runs from source. */
const WORKER = join(packageRoot, "dist", "services", "sources", "worker.js");
/** Node, the engine's code, its untracked buffers, and a batch of records. */
const OVERHEAD_BYTES = 512 * 1024 * 1024;
const HEAP_MEGABYTES = 384;
const WATCH_MS = 50;

type EndReason = Extract<Code, "TRB-SOURCE-MEMORY" | "TRB-SOURCE-STALLED" | "TRB-SOURCE-READER">;

export interface ProcessLimits {
  /** Of the engine. */
  readonly memoryBytes: number;
  /** Without a sign that it gets on for so long, the process is killed. */
  readonly idleMs: number;
}

/**
 * A process that reads what strangers wrote, seen from its parent: without network, secrets and settings of ours, on one
 * thread, killed when it holds too much or gets nowhere. Serves one call at a time.
 */
export class SourceProcess {
  /** Resolves when the process is gone. */
  readonly ended: Promise<void>;
  private readonly child: ChildProcess;
  private reason: EndReason | undefined;
  private exited = false;
  private pending:
    | {
        resolve: (result: unknown) => void;
        reject: (error: TributaryError) => void;
        tell: (reply: Reply) => void;
      }
    | undefined;

  constructor(private readonly limits: ProcessLimits) {
    const options: ReaderOptions = { memoryBytes: limits.memoryBytes };
    this.child = forkKillable(WORKER, options, HEAP_MEGABYTES);
    this.child.on("message", (reply: Reply) => this.receive(reply));
    this.ended = new Promise((resolve) => {
      const end = (signal: NodeJS.Signals | null) => {
        this.exited = true;
        // An abort is how Node and C++ end when memory runs out.
        this.reason ??= signal === "SIGABRT" ? "TRB-SOURCE-MEMORY" : "TRB-SOURCE-READER";
        this.pending?.reject(new TributaryError(this.reason));
        this.pending = undefined;
        resolve();
      };
      this.child.once("exit", (_, signal) => end(signal));
      this.child.once("error", () => {
        // A failed send or kill is followed by an exit; a process that never began is not.
        if (this.child.pid === undefined) end(null);
      });
    });
    // The parent's own end does not wait for it.
    this.child.unref();
    this.child.channel?.unref();
  }

  get pid(): number | undefined {
    return this.child.pid;
  }

  /** Errors: TRB-SOURCE-MEMORY, TRB-SOURCE-STALLED, TRB-SOURCE-READER, and those of the reader. */
  async call<R extends Request>(
    request: R,
    onRejects: (rejects: readonly Reject[]) => void = () => undefined,
  ): Promise<Results[R["type"]]> {
    if (this.exited) throw new TributaryError(this.reason ?? "TRB-SOURCE-READER");
    this.child.ref();
    this.child.channel?.ref();
    let heard = performance.now();
    const watch = setInterval(() => {
      if (performance.now() - heard > this.limits.idleMs) this.end("TRB-SOURCE-STALLED");
      this.watchMemory();
    }, WATCH_MS);
    try {
      const result = await new Promise<unknown>((resolve, reject) => {
        const tell = (reply: Reply) => {
          heard = performance.now();
          if (reply.type === "rejects") onRejects(reply.rejects);
        };
        this.pending = { resolve, reject, tell };
        this.child.send(request, (error) => {
          if (error !== null) this.end("TRB-SOURCE-READER");
        });
      });
      return result as Results[R["type"]];
    } finally {
      clearInterval(watch);
      this.child.unref();
      this.child.channel?.unref();
    }
  }

  /** Kills the process; `reason` is what a call under way is answered with. */
  end(reason: EndReason = "TRB-SOURCE-READER"): void {
    this.reason ??= reason;
    this.child.kill("SIGKILL");
  }

  private receive(reply: Reply): void {
    const { pending } = this;
    if (pending === undefined) return;
    pending.tell(reply);
    if (reply.type === "done") {
      this.pending = undefined;
      pending.resolve(reply.result);
    } else if (reply.type === "failed") {
      this.pending = undefined;
      pending.reject(new TributaryError(reply.code, reply.message));
    }
  }

  private watchMemory(): void {
    const { pid } = this.child;
    if (pid === undefined || this.exited) return;
    if ((residentBytes(pid) ?? 0) > this.limits.memoryBytes + OVERHEAD_BYTES) this.end("TRB-SOURCE-MEMORY");
  }
}
