import type { ChildProcess } from "node:child_process";
import { join } from "node:path";
import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { forkKillable, gone, residentBytes } from "../base/killable.js";
import { packageRoot } from "../base/paths.js";
import type { ReaderOptions, Reply } from "./protocol.js";
import { Silence, waitsOf } from "./silence.js";

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
  /** Without a sign that it gets on for so long, what it waits for a core left out, the process is killed. */
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

  /** `script` is JavaScript that answers requests with `Reply`s, the way worker.ts does. */
  constructor(
    private readonly limits: ProcessLimits,
    script = WORKER,
  ) {
    const options: ReaderOptions = { memoryBytes: limits.memoryBytes };
    this.child = forkKillable(script, options, HEAP_MEGABYTES);
    this.child.on("message", (reply: Reply) => this.receive(reply));
    this.ended = gone(this.child, (signal) => {
      this.exited = true;
      // An abort is how Node and C++ end when memory runs out.
      this.reason ??= signal === "SIGABRT" ? "TRB-SOURCE-MEMORY" : "TRB-SOURCE-READER";
      this.pending?.reject(new TributaryError(this.reason));
      this.pending = undefined;
    });
    // The parent's own end does not wait for it.
    this.child.unref();
    this.child.channel?.unref();
  }

  get pid(): number | undefined {
    return this.child.pid;
  }

  /**
   * The result of "done"; other messages go to `onTold`, and each is a sign that the process gets on.
   * Errors: TRB-SOURCE-MEMORY, TRB-SOURCE-STALLED, TRB-SOURCE-READER, and those of "failed".
   */
  async call(
    request: { readonly type: string },
    onTold: (reply: Reply) => void = () => undefined,
  ): Promise<unknown> {
    if (this.exited) throw new TributaryError(this.reason ?? "TRB-SOURCE-READER");
    this.child.ref();
    this.child.channel?.ref();
    const silence = new Silence(() => waitsOf(this.pid));
    const watch = setInterval(() => {
      if (silence.ms > this.limits.idleMs) this.end("TRB-SOURCE-STALLED");
      this.watchMemory();
    }, WATCH_MS);
    try {
      return await new Promise<unknown>((resolve, reject) => {
        const tell = (reply: Reply) => {
          silence.heard();
          onTold(reply);
        };
        this.pending = { resolve, reject, tell };
        this.child.send(request, (error) => {
          if (error !== null) this.end("TRB-SOURCE-READER");
        });
      });
    } finally {
      clearInterval(watch);
      this.child.unref();
      this.child.channel?.unref();
    }
  }

  /** Kills the process; `reason` is what a call under way is answered with. */
  end(reason: EndReason = "TRB-SOURCE-READER"): void {
    this.reason ??= reason;
    // Who waits for its end may wait for nothing else.
    if (!this.exited) this.child.ref();
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
