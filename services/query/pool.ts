import { assert, TributaryError } from "../base/errors.js";
import type { Request } from "./protocol.js";
import { type Claim, type ShareLimits, Shares } from "./shares.js";
import { type Answered, WorkerProcess } from "./worker-process.js";

export interface PoolOptions {
  readonly shares: ShareLimits;
  /** What the engine of one worker may use; the process as a whole gets a fixed overhead on top. */
  readonly memoryBytes: number;
  /** Milliseconds after which an idle worker, and the rows it holds, is let go. */
  readonly idleMs?: number;
}

/** Milliseconds a query has the machine like any other; after these it comes second to younger ones. */
const LONG_MS = 300;

/** Tenants' workers that are kept beside those that run. */
const SPARE_SESSIONS = 2;

/** The use of one worker by one query. */
export interface Lease {
  /**
   * One message to the worker, killed when it takes longer than `deadlineMs`. `onRows` gets pieces of the answer.
   * "yielded" means the query gave its place to others and wants another, with `yielded` set.
   * Errors: TributaryError of the worker's end. Failures of the query itself are returned.
   */
  call(request: Request, deadlineMs: number, onRows?: (text: string) => void): Promise<Answered>;
  release(): void;
}

/**
 * Workers, each a child process that serves one tenant in its whole life: to serve another, it is replaced by a
 * fresh process, so that nothing of a tenant is left where another's SQL runs. A blank one is kept warm.
 */
export class WorkerPool {
  private readonly options: PoolOptions;
  private readonly shares: Shares;
  private readonly workers = new Set<WorkerProcess>();
  private readonly sweep: NodeJS.Timeout;
  private closed = false;

  constructor(options: PoolOptions) {
    this.options = options;
    this.shares = new Shares(options.shares);
    this.sweep = setInterval(() => this.retireIdle(), 5_000);
    this.sweep.unref();
    this.warm();
  }

  get running(): number {
    return this.shares.running;
  }

  get waiting(): number {
    return this.shares.waiting;
  }

  /**
   * A worker for a query of `tenant`, at once or in turn. Errors: TRB-QUERY-BUSY when too many wait already.
   * Aborting ends the wait, or the worker: nobody wants the answer any more.
   */
  lease(tenant: string, options: { yielded: boolean; signal?: AbortSignal }): Promise<Lease> {
    const { yielded, signal } = options;
    if (this.closed) throw new TributaryError("TRB-BUS-DRAINING");
    if (signal?.aborted === true) throw new TributaryError("TRB-QUERY-TIMEOUT");
    return new Promise((resolve, reject) => {
      let worker: WorkerProcess | undefined;
      let long: NodeJS.Timeout | undefined;
      const leave = () => {
        this.shares.withdraw(claim);
        worker?.end("TRB-QUERY-TIMEOUT");
        reject(new TributaryError("TRB-QUERY-TIMEOUT"));
      };
      const claim: Claim = {
        tenant,
        yielded,
        start: () => {
          const taken = this.take(tenant);
          worker = taken;
          long = setTimeout(() => {
            taken.runSecond();
            this.shares.takesLong(claim);
          }, LONG_MS);
          long.unref();
          resolve({
            call: (request, deadlineMs, onRows) => taken.call(request, deadlineMs, onRows),
            release: () => {
              clearTimeout(long);
              signal?.removeEventListener("abort", leave);
              taken.free();
              this.shares.release(claim);
            },
          });
        },
        refuse: (error) => {
          signal?.removeEventListener("abort", leave);
          reject(error);
        },
        yield: () => worker?.end("yielded"),
      };
      signal?.addEventListener("abort", leave, { once: true });
      this.shares.claim(claim);
    });
  }

  /** Ends all workers; queries under way fail. */
  async close(): Promise<void> {
    this.closed = true;
    clearInterval(this.sweep);
    this.shares.refuseAll(() => new TributaryError("TRB-BUS-DRAINING"));
    const workers = [...this.workers];
    for (const worker of workers) worker.end("TRB-BUS-DRAINING");
    await Promise.all(workers.map((worker) => worker.ended));
  }

  private get living(): WorkerProcess[] {
    return [...this.workers].filter(({ alive }) => alive);
  }

  /** First a worker that holds the tenant's rows, then a blank one; the place of another tenant's if need be. */
  private take(tenant: string): WorkerProcess {
    const idle = this.living.filter(({ busy }) => !busy);
    let worker = idle.find((one) => one.tenant === tenant) ?? idle.find((one) => one.tenant === undefined);
    if (worker === undefined) worker = this.start();
    worker.busy = true;
    if (worker.tenant === undefined) {
      worker.tenant = tenant;
      this.makeRoom();
    }
    assert(worker.tenant === tenant, "a worker serves one tenant");
    this.warm();
    return worker;
  }

  /** A few more tenants' sessions are kept than queries may run: who asks now and then is spared a fresh process. */
  private makeRoom(): void {
    const held = this.living.filter(({ tenant }) => tenant !== undefined);
    const idle = held.filter(({ busy }) => !busy).sort((a, b) => a.idleSince - b.idleSince);
    for (let excess = held.length - this.options.shares.running - SPARE_SESSIONS; excess > 0; excess--)
      idle.shift()?.end("TRB-INTERNAL");
  }

  private warm(): void {
    const blank = this.living.some(({ busy, tenant }) => !busy && tenant === undefined);
    if (!blank && !this.closed) this.start();
  }

  private start(): WorkerProcess {
    const worker = new WorkerProcess(this.options.memoryBytes);
    this.workers.add(worker);
    void worker.ended.then(() => {
      this.workers.delete(worker);
      // A worker that could not even start is not replaced in a hurry: the next query tries.
      if (worker.wasReady) this.warm();
    });
    return worker;
  }

  private retireIdle(): void {
    const before = Date.now() - (this.options.idleMs ?? 60_000);
    for (const worker of this.workers) {
      if (!worker.busy && worker.tenant !== undefined && worker.idleSince < before)
        worker.end("TRB-INTERNAL");
    }
  }
}
