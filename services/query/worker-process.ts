import type { ChildProcess } from "node:child_process";
import { constants, setPriority } from "node:os";
import { join } from "node:path";
import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { forkKillable, gone, residentBytes } from "../base/killable.js";
import { packageRoot } from "../base/paths.js";
import type { Reply, Request, WorkerOptions } from "./protocol.js";

/** The compiled worker: a child process needs JavaScript, also when the parent runs from source. */
const WORKER = join(packageRoot, "dist", "services", "query", "worker.js");
/** Node, the engine's code, its untracked buffers and the answer on its way. */
const OVERHEAD_BYTES = 320 * 1024 * 1024;
const HEAP_MEGABYTES = 192;
const WATCH_MS = 20;

/** What a worker's end is answered with; what has yielded is asked again. */
type EndReason =
  | Extract<Code, "TRB-QUERY-TIMEOUT" | "TRB-QUERY-MEMORY" | "TRB-INTERNAL" | "TRB-BUS-DRAINING">
  | "yielded";

export type Answered = Exclude<Reply, { type: "ready" } | { type: "rows" }> | { readonly type: "yielded" };

/** One child process, seen from its parent. */
export class WorkerProcess {
  /** Set once: the only tenant this process ever serves. */
  tenant: string | undefined;
  busy = false;
  idleSince = 0;
  wasReady = false;
  /** Resolves when the process is gone. */
  readonly ended: Promise<void>;

  private readonly child: ChildProcess;
  private readonly limitBytes: number;
  private reason: EndReason | undefined;
  private exited = false;
  private second = false;
  private pending:
    | {
        resolve: (answer: Answered) => void;
        reject: (error: TributaryError) => void;
        onRows: (text: string) => void;
      }
    | undefined;

  /** Not ended, and nobody has ordered its end. */
  get alive(): boolean {
    return !this.exited && this.reason === undefined;
  }

  constructor(memoryBytes: number) {
    this.limitBytes = memoryBytes + OVERHEAD_BYTES;
    const options: WorkerOptions = { memoryBytes };
    this.child = forkKillable(WORKER, options, HEAP_MEGABYTES);
    this.child.on("message", (reply: Reply) => this.receive(reply));
    this.ended = gone(this.child, (signal) => {
      this.exited = true;
      this.reason ??= reasonOf(signal);
      const { pending, reason } = this;
      this.pending = undefined;
      if (reason === "yielded") pending?.resolve({ type: "yielded" });
      else pending?.reject(new TributaryError(reason));
    });
    // The parent's own end does not wait for it.
    this.child.unref();
    this.child.channel?.unref();
  }

  call(request: Request, deadlineMs: number, onRows: (text: string) => void = () => {}): Promise<Answered> {
    if (this.exited) {
      if (this.reason === "yielded") return Promise.resolve({ type: "yielded" });
      throw new TributaryError(this.reason ?? "TRB-INTERNAL");
    }
    this.child.ref();
    this.child.channel?.ref();
    const timer = setTimeout(() => this.end("TRB-QUERY-TIMEOUT"), deadlineMs);
    const watch = setInterval(() => this.watchMemory(), WATCH_MS);
    return new Promise<Answered>((resolve, reject) => {
      this.pending = { resolve, reject, onRows };
      this.child.send(request, (error) => {
        if (error !== null) this.end("TRB-INTERNAL");
      });
    }).finally(() => {
      clearTimeout(timer);
      clearInterval(watch);
      this.child.unref();
      this.child.channel?.unref();
    });
  }

  /** The machine serves other processes before this one. */
  runSecond(): void {
    this.second = this.prioritize(constants.priority.PRIORITY_LOW);
  }

  /** The query is over. Not everybody may raise a process's priority again: then a fresh process is to serve the next. */
  free(): void {
    this.busy = false;
    this.idleSince = Date.now();
    if (this.second && !this.prioritize(constants.priority.PRIORITY_NORMAL)) this.end("TRB-INTERNAL");
    this.second = false;
  }

  private prioritize(priority: number): boolean {
    if (this.child.pid === undefined || !this.alive) return false;
    try {
      setPriority(this.child.pid, priority);
      return true;
    } catch {
      return false;
    }
  }

  /** Kills the process; `reason` is what a query under way is answered with. */
  end(reason: EndReason): void {
    this.reason ??= reason;
    this.child.kill("SIGKILL");
  }

  private receive(reply: Reply): void {
    if (reply.type === "ready") {
      this.wasReady = true;
      return;
    }
    if (reply.type === "rows") {
      this.pending?.onRows(reply.text);
      return;
    }
    const pending = this.pending;
    this.pending = undefined;
    // An engine that has failed inwardly is not used again.
    if (isBroken(reply)) this.end("TRB-INTERNAL");
    pending?.resolve(reply);
  }

  /** The engine counts most of its memory, not all: a list made by one function call can be larger than the machine. */
  private watchMemory(): void {
    const pid = this.child.pid;
    if (pid === undefined || this.exited) return;
    // Where it is not told the engine's own limit and the heap's remain.
    if ((residentBytes(pid) ?? 0) > this.limitBytes) this.end("TRB-QUERY-MEMORY");
  }
}

const isBroken = (reply: Answered): boolean =>
  reply.type === "failed" && (reply.broken === true || reply.code === "TRB-INTERNAL");

/** An end that was not ours: an abort is how Node and C++ end when memory runs out, a kill how Linux does it. */
const reasonOf = (signal: NodeJS.Signals | null): EndReason =>
  signal === "SIGABRT" || signal === "SIGKILL" ? "TRB-QUERY-MEMORY" : "TRB-INTERNAL";
