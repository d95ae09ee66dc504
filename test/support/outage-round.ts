import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { type ChangeEvent, encodeEvent } from "../../clients/producer/src/event.js";
import { Producer } from "../../clients/producer/src/index.js";
import { packageRoot } from "../../services/base/paths.js";
import { ProtoRegistry } from "../../services/contracts/registry.js";
import type { HttpFaultProxy } from "./fault-proxy.js";
import { checkLanded, family, type RoundOptions } from "./ingest-round.js";
import type { Random } from "./lake.js";
import { Oracle } from "./oracle.js";
import { makeToken, Server } from "./stack.js";

/** A bus, an ingest and producers that go on while the stream refuses and the store is away. */

const MiB = 1024 * 1024;
const TYPE = "scm.v1.File";
const ENTITIES = 3_000;
/** Of each of the producers, all 50 ms. */
const BURST = 10;

/** What the processes may hold at most, with the settings below: a bound each, whatever the outage's length. */
const SETTINGS = {
  TRIBUTARY_BUS__MAX_LAG_BYTES: String(MiB),
  TRIBUTARY_INGEST__DUCKDB_MEMORY_BYTES: String(256 * MiB),
  TRIBUTARY_INGEST__KEY_INDEX_BYTES: String(64 * MiB),
  TRIBUTARY_STORAGE__S3__CACHE_BYTES: String(64 * MiB),
};
const MOST = { bus: 384 * MiB, ingest: 768 * MiB, disk: 128 * MiB, backlog: 2 * MiB };

export interface OutageOptions {
  readonly folder: string;
  readonly env: NodeJS.ProcessEnv;
  readonly random: Random;
  readonly readTable: RoundOptions["readTable"];
  /** Stands before the store. */
  readonly store: HttpFaultProxy;
  /** The stream refuses about 30 % of the records until the returned function is called. */
  readonly refuse: () => Promise<() => Promise<void>>;
  readonly seconds: { readonly refusing: number; readonly failing: number; readonly away: number };
}

/**
 * Producers post at a steady rate while the stream refuses, the store fails, then is away for long. In the end every
 * event was accepted, each record is in raw once, and refined is what the oracle says; meanwhile memory and disk stayed
 * below a bound. Resolves to what was seen.
 */
export async function outageRound(options: OutageOptions): Promise<Seen> {
  const { folder, random, store, refuse, seconds } = options;
  const env = { ...SETTINGS, ...options.env };
  const bus = await Server.start("bus", join(folder, "bus"), env);
  const ingest = await Server.start("ingest", join(folder, "ingest"), env);
  const [token, operator] = [
    await makeToken(join(folder, "bus"), "producer"),
    await makeToken(join(folder, "bus"), "operator"),
  ];
  const watch = new Watch(folder, bus, ingest, operator);
  const oracle = new Oracle();
  const source = new EventSource(random);
  try {
    const producers = [1, 2].map(
      () => new Producer({ url: bus.url, token, maxBufferedBytes: MiB / 2, deadlineMs: 3_600_000 }),
    );
    const posting = new AbortController();
    const posted = Promise.all(
      producers.map((producer, i) => post(producer, i, source, oracle, posting.signal)),
    );
    posted.catch(() => undefined);
    await sleep(3_000);

    const [calm, end] = [await watch.answers(), await refuse()];
    await sleep(seconds.refusing * 1_000);
    await end();
    watch.refusedWhileRefusing = (await watch.answers()).since(calm);

    store.fault = ({ number }) => ({ kind: "answer", status: number % 2 === 0 ? 500 : 503 });
    await sleep(seconds.failing * 1_000);
    store.fault = () => undefined;
    await sleep(5_000);

    const before = await watch.answers();
    const back = store.outage();
    await sleep(seconds.away * 1_000);
    watch.refusedWhileAway = (await watch.answers()).since(before);
    back();
    await sleep(3_000);
    posting.abort();
    const receipts = (await posted).flat();
    for (const producer of producers)
      expect((await producer.close({ withinMs: 300_000 })).undelivered).toEqual([]);
    const taken = (await Promise.all(receipts)).map(({ partition, position }) => `${partition}/${position}`);

    const { readTable } = options;
    const places = await checkLanded({ folder, env, types: [TYPE], oracle, readTable, note: "outage" });
    expect(new Set(taken).size, "a place for each").toBe(taken.length);
    expect(taken.filter((place) => !places.has(place))).toEqual([]);
    watch.seen.accepted = taken.length;
    watch.seen.records = places.size;
  } finally {
    await watch.stop();
    const codes = [await ingest.stop(), await bus.stop()];
    expect(codes, `graceful ends\n${ingest.stderr.slice(-2_000)}\n${bus.stderr.slice(-2_000)}`).toEqual([
      0, 0,
    ]);
  }
  const { peaks } = watch.seen;
  for (const what of ["bus", "ingest", "disk", "backlog"] as const) {
    expect(peaks[what], `${what}: ${JSON.stringify(watch.seen)}`).toBeLessThan(MOST[what]);
  }
  return watch.seen;
}

/** Posts until the signal comes; resolves to the promises of all its receipts. */
async function post(
  producer: Producer,
  number: number,
  source: EventSource,
  oracle: Oracle,
  signal: AbortSignal,
) {
  const receipts: ReturnType<Producer["send"]>[] = [];
  while (!signal.aborted) {
    for (let i = 0; i < BURST; i++) {
      const event = source.next(`tenant-${number}`);
      oracle.apply(encodeEvent(event));
      receipts.push(producer.send(event));
      receipts.at(-1)!.catch(() => undefined);
    }
    await Promise.all([producer.whenRoom(), sleep(50)]);
  }
  return receipts;
}

/** Files of some tenants that are made, changed and deleted. */
class EventSource {
  private readonly file = ProtoRegistry.load([join(packageRoot, "proto")]).codec(TYPE);
  private version = 0;

  constructor(private readonly random: Random) {}

  next(tenantId: string): ChangeEvent {
    const { random } = this;
    const version = ++this.version;
    const path = `src/folder-${random.below(40)}/file-${random.below(ENTITIES)}.ts`;
    const event = { tenantId, entityType: TYPE, entityId: path, version };
    if (random.chance(0.05)) return { ...event, operation: "deleted" };
    const payload = this.file
      .encode({
        path,
        lastCommitSha: version.toString(16).padStart(40, "0"),
        lastAuthor: "author".repeat(40),
        changeCount: version,
        linesAdded: version,
      })
      .finish();
    return { ...event, operation: random.chance(0.5) ? "created" : "updated", payload };
  }
}

export interface Seen {
  /** Bytes at most. */
  readonly peaks: { bus: number; ingest: number; disk: number; backlog: number };
  accepted: number;
  records: number;
  /** Requests that were answered with 429 or 503, and events that were rejected in an answer, to be sent again. */
  refusedWhileRefusing: number;
  refusedWhileAway: number;
}

class Answers {
  constructor(private readonly refused: number) {}
  since = (earlier: Answers): number => this.refused - earlier.refused;
}

/** Looks at memory and disk once a second. */
class Watch {
  readonly seen: Seen = {
    peaks: { bus: 0, ingest: 0, disk: 0, backlog: 0 },
    accepted: 0,
    records: 0,
    refusedWhileRefusing: 0,
    refusedWhileAway: 0,
  };
  private readonly ending = new AbortController();
  private readonly looking: Promise<void>;

  constructor(
    private readonly folder: string,
    private readonly bus: Server,
    private readonly ingest: Server,
    private readonly operator: string,
  ) {
    this.looking = this.look();
  }

  set refusedWhileRefusing(count: number) {
    this.seen.refusedWhileRefusing = count;
  }
  set refusedWhileAway(count: number) {
    this.seen.refusedWhileAway = count;
  }

  /** What the bus has refused so far. */
  async answers(): Promise<Answers> {
    const text = await this.metrics();
    const counts = text.matchAll(
      /^tributary_bus_(?:request_seconds_count\{.*status="(?:429|503)".*\}|events_rejected_total\{.*\}) (\d+)/gm,
    );
    return new Answers([...counts].reduce((sum, [, count]) => sum + Number(count), 0));
  }

  private async metrics(): Promise<string> {
    const headers = { authorization: `Bearer ${this.operator}` };
    const answer = await fetch(`${this.bus.url}/metrics`, { headers });
    expect(answer.status).toBe(200);
    return answer.text();
  }

  private async look(): Promise<void> {
    const { peaks } = this.seen;
    while (!this.ending.signal.aborted) {
      peaks.bus = Math.max(peaks.bus, memoryOf(this.bus));
      peaks.ingest = Math.max(peaks.ingest, memoryOf(this.ingest));
      peaks.disk = Math.max(peaks.disk, sizeOf(this.folder));
      const backlog = /^tributary_bus_backlog_bytes\{.*\} (\d+)/m.exec(await this.metrics())?.[1];
      peaks.backlog = Math.max(peaks.backlog, Number(backlog ?? 0));
      await sleep(1_000, undefined, { signal: this.ending.signal }).catch(() => undefined);
    }
  }

  async stop(): Promise<void> {
    this.ending.abort();
    await this.looking;
  }
}

/** Resident bytes of a server with its children. */
const memoryOf = ({ process: { pid } }: Server): number =>
  family(pid!).reduce((sum, one) => {
    const kB = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${one}/status`, "utf8"))?.[1];
    return sum + Number(kB ?? 0) * 1024;
  }, 0);

/** Bytes of all files; what goes away meanwhile counts for nothing. */
const sizeOf = (folder: string): number =>
  readdirSync(folder, { recursive: true, withFileTypes: true }).reduce((sum, entry) => {
    if (!entry.isFile()) return sum;
    return sum + (statSync(join(entry.parentPath, entry.name), { throwIfNoEntry: false })?.size ?? 0);
  }, 0);
