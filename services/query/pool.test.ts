import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { WorkerPool } from "./pool.js";
import type { Request } from "./protocol.js";
import type { WorkerProcess } from "./worker-process.js";

/** A worker without a process. */
class FakeWorker {
  static all: FakeWorker[] = [];
  /** Takes itself for another tenant's. */
  static confused = false;
  readonly tenants = new Set<string>();
  busy = false;
  idleSince = 0;
  wasReady = true;
  second = false;
  reason: string | undefined;
  ended: Promise<void>;
  private gone = (): void => undefined;
  private served: string | undefined;

  constructor() {
    FakeWorker.all.push(this);
    this.ended = new Promise((resolve) => {
      this.gone = resolve;
    });
  }

  get tenant(): string | undefined {
    return this.served;
  }

  set tenant(name: string | undefined) {
    this.served = FakeWorker.confused ? `not ${name}` : name;
    if (name !== undefined) this.tenants.add(name);
  }

  get alive(): boolean {
    return this.reason === undefined;
  }

  async call({ tenant }: { tenant: string }) {
    this.tenants.add(tenant);
    return { type: "done", columns: [], rowCount: 0 };
  }

  runSecond(): void {
    this.second = true;
  }

  free(): void {
    this.busy = false;
    this.idleSince = Date.now();
  }

  end(reason: string): void {
    this.reason ??= reason;
    this.gone();
  }
}

vi.mock("./worker-process.js", () => ({
  // Looked up when the first is made: the class is not there yet when this runs.
  WorkerProcess: function make() {
    return new FakeWorker() as unknown as WorkerProcess;
  },
}));

const SHARES = { running: 3, runningPerTenant: 2, waiting: 8, waitingPerTenant: 4 };
let pool: WorkerPool;
beforeEach(() => {
  vi.useFakeTimers();
  FakeWorker.all = [];
  FakeWorker.confused = false;
  pool = new WorkerPool({ shares: SHARES, memoryBytes: 1, idleMs: 60_000 });
});
afterEach(async () => {
  await pool.close();
  vi.useRealTimers();
});

const lease = (tenant: string, options: { yielded?: boolean; signal?: AbortSignal } = {}) =>
  pool.lease(tenant, { yielded: false, ...options });
const living = () => FakeWorker.all.filter(({ alive }) => alive);
const of = (tenant: string) => FakeWorker.all.filter(({ tenants }) => tenants.has(tenant));
const codeOf = (lease: Promise<unknown>) =>
  lease.then(
    () => "leased",
    (error: { code: string }) => error.code,
  );

describe("a process serves one tenant in its whole life", () => {
  test("and that tenant again, while it lives", async () => {
    for (const tenant of ["a", "b", "a", "c", "b", "a", "d", "e", "a", "f"]) {
      const leased = await lease(tenant);
      await leased.call({ tenant } as Request, 1_000);
      leased.release();
      vi.advanceTimersByTime(1);
    }
    for (const { tenants } of FakeWorker.all) expect(tenants.size).toBeLessThan(2);
    const kept = of("a").length;
    (await lease("a")).release();
    expect(of("a")).toHaveLength(kept);
  });

  test("one that is not the tenant's is never handed out, however it came to be chosen", async () => {
    FakeWorker.confused = true;
    await expect(lease("a")).rejects.toThrow("assertion failed: a worker serves one tenant");
  });

  test("a blank one is kept warm, and no more sessions than a few", async () => {
    expect(living()).toHaveLength(1);
    for (let at = 0; at < 20; at++) {
      (await lease(`t${at}`)).release();
      vi.advanceTimersByTime(1);
      expect(living().filter(({ tenant }) => tenant === undefined)).toHaveLength(1);
      expect(living().filter(({ tenant }) => tenant !== undefined).length).toBeLessThanOrEqual(5);
    }
    // Who asked last is spared a fresh process.
    const before = FakeWorker.all.length;
    (await lease("t18")).release();
    expect(FakeWorker.all).toHaveLength(before);
  });

  test("one that runs is never given up for another tenant's", async () => {
    const running = await Promise.all(["a", "b", "c"].map((tenant) => lease(tenant)));
    for (const tenant of ["a", "b", "c"]) expect(of(tenant).every(({ alive }) => alive)).toBe(true);
    expect(pool.running).toBe(3);
    for (const one of running) one.release();
    expect(pool.running).toBe(0);
  });

  test("an idle one is let go, with the rows it holds", async () => {
    (await lease("a")).release();
    vi.advanceTimersByTime(59_000);
    expect(of("a")[0]!.alive).toBe(true);
    vi.advanceTimersByTime(10_000);
    expect(of("a")[0]!.alive).toBe(false);
  });
});

describe("a query", () => {
  test("that runs long comes second, and yields to a tenant that waits", async () => {
    await Promise.all(["a", "b", "c"].map((tenant) => lease(tenant)));
    const waiting = lease("d");
    vi.advanceTimersByTime(250);
    expect(FakeWorker.all.some(({ second }) => second)).toBe(false);
    vi.advanceTimersByTime(100);
    expect(["a", "b", "c"].flatMap(of).every(({ second }) => second)).toBe(true);
    expect(of("c")[0]!.reason).toBe("yielded");
    expect(of("a")[0]!.reason).toBeUndefined();
    expect(pool.waiting).toBe(1);
    void waiting.catch(() => undefined);
  });

  test("that is over in time is not taken for a long one", async () => {
    const a = await lease("a");
    vi.advanceTimersByTime(200);
    a.release();
    vi.advanceTimersByTime(1_000);
    expect(of("a")[0]!.second).toBe(false);
  });

  test("whose caller leaves frees its place, wherever it is", async () => {
    const leaving = new AbortController();
    await Promise.all(["a", "b"].map((tenant) => lease(tenant)));
    const running = await lease("c", { signal: leaving.signal });
    const waiting = codeOf(lease("d", { signal: leaving.signal }));
    leaving.abort();
    expect(await waiting).toBe("TRB-QUERY-TIMEOUT");
    expect(of("c")[0]!.reason).toBe("TRB-QUERY-TIMEOUT");
    running.release();
    expect([pool.running, pool.waiting]).toEqual([2, 0]);
    expect(await codeOf(Promise.resolve().then(() => lease("e", { signal: leaving.signal })))).toBe(
      "TRB-QUERY-TIMEOUT",
    );
    expect(of("e")).toEqual([]);
  });

  test("that is done is not ended when its caller leaves later", async () => {
    const leaving = new AbortController();
    (await lease("a", { signal: leaving.signal })).release();
    leaving.abort();
    expect(of("a")[0]!.alive).toBe(true);
  });

  test("beyond the shares is refused, and all that wait when the pool closes", async () => {
    await Promise.all(["a", "a"].map((tenant) => lease(tenant)));
    const waiting = Array.from({ length: 4 }, () => codeOf(lease("a")));
    expect(await codeOf(lease("a"))).toBe("TRB-QUERY-BUSY");
    await pool.close();
    expect(await Promise.all(waiting)).toEqual(Array(4).fill("TRB-BUS-DRAINING"));
    expect(await codeOf(Promise.resolve().then(() => lease("b")))).toBe("TRB-BUS-DRAINING");
  });
});
