import { type ChildProcess, fork } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { packageRoot } from "../base/paths.js";
import type { Failure, Reply, Request, WorkerOptions } from "./protocol.js";

export interface PoolOptions {
  /** Queries that run at once, each in a process of its own. */
  readonly workers: number;
  /** Callers that may wait for a worker. */
  readonly maxWaiting: number;
  /** What the engine of one worker may use; the process as a whole gets a fixed overhead on top. */
  readonly memoryBytes: number;
  /** Milliseconds after which an idle worker, and the rows it holds, is let go. */
  readonly idleMs?: number;
}

/** The compiled worker: a child process needs JavaScript, also when the parent runs from source. */
const WORKER = join(packageRoot, "dist", "services", "query", "worker.js");
/** Node, the engine's code, its untracked buffers and the answer on its way. */
const OVERHEAD_BYTES = 320 * 1024 * 1024;
const HEAP_MEGABYTES = 192;
const WATCH_MS = 20;

/** What a worker's end is answered with. */
type EndReason = Extract<
  Code,
  "TRB-QUERY-TIMEOUT" | "TRB-QUERY-MEMORY" | "TRB-INTERNAL" | "TRB-BUS-DRAINING"
>;

/** The use of one worker by one query. */
export interface Lease {
  /**
   * One message to the worker, killed when it takes longer than `deadlineMs`. `onRows` gets pieces of the answer.
   * Errors: TributaryError of the worker's end. Failures of the query itself are returned.
   */
  call(request: Request, deadlineMs: number, onRows?: (text: string) => void): Promise<Answered>;
  release(): void;
}

export type Answered = Exclude<Reply, { type: "ready" } | { type: "rows" }>;

interface Waiting {
  readonly tenant: string;
  readonly grant: (worker: Worker) => void;
  readonly refuse: (error: TributaryError) => void;
}

/**
 * Workers, each a child process that serves one tenant in its whole life: to serve another, it is replaced by a
 * fresh process, so that nothing of a tenant is left where another's SQL runs. A blank one is kept warm.
 */
export class WorkerPool {
  private readonly options: PoolOptions;
  private readonly workers = new Set<Worker>();
  private readonly queue: Waiting[] = [];
  private readonly sweep: NodeJS.Timeout;
  private closed = false;

  constructor(options: PoolOptions) {
    this.options = options;
    this.sweep = setInterval(() => this.retireIdle(), 5_000);
    this.sweep.unref();
    this.warm();
  }

  get running(): number {
    return this.busy.length;
  }

  get waiting(): number {
    return this.queue.length;
  }

  /**
   * A worker for a query of `tenant`, at once or in turn. Errors: TRB-QUERY-BUSY when too many wait already.
   * Aborting ends the wait, or the worker: nobody wants the answer any more.
   */
  async lease(tenant: string, signal?: AbortSignal): Promise<Lease> {
    const worker = await this.acquire(tenant, signal);
    const abort = () => worker.end("TRB-QUERY-TIMEOUT");
    signal?.addEventListener("abort", abort, { once: true });
    return {
      call: (request, deadlineMs, onRows) => worker.call(request, deadlineMs, onRows),
      release: () => {
        signal?.removeEventListener("abort", abort);
        worker.busy = false;
        worker.idleSince = Date.now();
        this.next();
      },
    };
  }

  /** Ends all workers; queries under way fail. */
  async close(): Promise<void> {
    this.closed = true;
    clearInterval(this.sweep);
    for (const waiting of this.queue.splice(0)) waiting.refuse(new TributaryError("TRB-BUS-DRAINING"));
    const workers = [...this.workers];
    for (const worker of workers) worker.end("TRB-BUS-DRAINING");
    await Promise.all(workers.map((worker) => worker.ended));
  }

  private get living(): Worker[] {
    return [...this.workers].filter(({ alive }) => alive);
  }

  private get busy(): Worker[] {
    return [...this.workers].filter(({ busy }) => busy);
  }

  private acquire(tenant: string, signal: AbortSignal | undefined): Promise<Worker> {
    if (this.closed) throw new TributaryError("TRB-BUS-DRAINING");
    if (this.queue.length === 0 && this.busy.length < this.options.workers) {
      return Promise.resolve(this.take(tenant));
    }
    if (this.queue.length >= this.options.maxWaiting) throw new TributaryError("TRB-QUERY-BUSY");
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.queue.splice(this.queue.indexOf(waiting), 1);
        reject(new TributaryError("TRB-QUERY-TIMEOUT"));
      };
      const waiting: Waiting = {
        tenant,
        grant: (worker) => {
          signal?.removeEventListener("abort", leave);
          resolve(worker);
        },
        refuse: reject,
      };
      this.queue.push(waiting);
      signal?.addEventListener("abort", leave, { once: true });
    });
  }

  /** First a worker that holds the tenant's rows, then a blank one; the place of another tenant's if need be. */
  private take(tenant: string): Worker {
    const idle = this.living.filter(({ busy }) => !busy);
    let worker = idle.find((one) => one.tenant === tenant) ?? idle.find((one) => one.tenant === undefined);
    if (worker === undefined) worker = this.start();
    if (worker.tenant === undefined) {
      worker.tenant = tenant;
      this.makeRoom();
    }
    worker.busy = true;
    this.warm();
    return worker;
  }

  /** No more tenants' sessions are kept than queries may run. */
  private makeRoom(): void {
    const held = this.living.filter(({ tenant }) => tenant !== undefined);
    const idle = held.filter(({ busy, idleSince }) => !busy && idleSince > 0);
    idle.sort((a, b) => a.idleSince - b.idleSince);
    for (let excess = held.length - this.options.workers; excess > 0; excess--)
      idle.shift()?.end("TRB-INTERNAL");
  }

  private warm(): void {
    const blank = this.living.some(({ busy, tenant }) => !busy && tenant === undefined);
    if (!blank && !this.closed) this.start();
  }

  private start(): Worker {
    const worker = new Worker(this.options.memoryBytes);
    this.workers.add(worker);
    void worker.ended.then(() => {
      this.workers.delete(worker);
      // A worker that could not even start is not replaced in a hurry: the next query tries.
      if (worker.wasReady) this.warm();
      this.next();
    });
    return worker;
  }

  /** The waiting query whose tenant runs the fewest; of these the one that came first. */
  private next(): void {
    while (!this.closed && this.queue.length > 0 && this.busy.length < this.options.workers) {
      const busy = this.busy;
      const load = ({ tenant }: Waiting) => busy.filter((worker) => worker.tenant === tenant).length;
      let best = 0;
      for (let at = 1; at < this.queue.length; at++) {
        if (load(this.queue[at]!) < load(this.queue[best]!)) best = at;
      }
      const [waiting] = this.queue.splice(best, 1);
      waiting!.grant(this.take(waiting!.tenant));
    }
  }

  private retireIdle(): void {
    const before = Date.now() - (this.options.idleMs ?? 60_000);
    for (const worker of this.workers) {
      if (!worker.busy && worker.tenant !== undefined && worker.idleSince < before)
        worker.end("TRB-INTERNAL");
    }
  }
}

/** One child process, seen from its parent. */
class Worker {
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
    this.child = fork(WORKER, [JSON.stringify(options)], {
      // Nothing of ours: no keys, no settings, no paths.
      env: { TZ: "UTC" },
      execArgv: [`--max-old-space-size=${HEAP_MEGABYTES}`],
      serialization: "advanced",
      stdio: ["ignore", "ignore", "ignore", "ipc"],
    });
    this.child.on("message", (reply: Reply) => this.receive(reply));
    this.ended = new Promise((resolve) => {
      const end = (signal: NodeJS.Signals | null) => {
        this.exited = true;
        this.pending?.reject(new TributaryError(this.reason ?? reasonOf(signal)));
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

  call(request: Request, deadlineMs: number, onRows: (text: string) => void = () => {}): Promise<Answered> {
    if (this.exited) throw new TributaryError(this.reason ?? "TRB-INTERNAL");
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
    try {
      const resident = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1];
      if (Number(resident) * 1024 > this.limitBytes) this.end("TRB-QUERY-MEMORY");
    } catch {
      // No /proc here, or the process has just ended: the engine's own limit and the heap's remain.
    }
  }
}

const isBroken = (reply: Answered): reply is Failure =>
  reply.type === "failed" && reply.code === "TRB-INTERNAL";

/** An end that was not ours: an abort is how Node and C++ end when memory runs out, a kill how Linux does it. */
const reasonOf = (signal: NodeJS.Signals | null): EndReason =>
  signal === "SIGABRT" || signal === "SIGKILL" ? "TRB-QUERY-MEMORY" : "TRB-INTERNAL";
