import { randomUUID } from "node:crypto";
import { TributaryError } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import type { Lease, LeaseChange, LeaseResult, LeaseStore } from "./lease-store.js";

/** What the object-store port offers (services/storage), as far as leases need it. */
export interface LeaseObjects {
  get(key: string): Promise<Buffer | undefined>;
  putIfAbsent(key: string, bytes: Uint8Array): Promise<"created" | "exists">;
  list(
    prefix: string,
    startAfter?: string,
  ): AsyncIterable<{ readonly key: string; readonly modifiedAt: number }>;
  delete(keys: readonly string[]): Promise<void>;
}

/** Records older than the newest by so much are removed, by the store's own times. */
const KEEP_MS = 10 * 60_000;
/** Who has not looked for so long, by either clock, may have missed a removal and looks for the newest record anew. */
const STALE_MS = KEEP_MS / 2;
/** One in so many changes cleans up. */
const CLEAN_EVERY = 128;
const DIGITS = 16;

interface State {
  readonly number: number;
  readonly leases: ReadonlyMap<string, Lease>;
}

/**
 * Leases as a numbered sequence of objects, each the whole state: record n + 1 is put if absent, so that of several
 * workers one writes it. A worker changes all of its leases in one put, and looks by asking for the next number: one
 * request while nothing changes, whatever the number of leases.
 */
export class ObjectLeaseStore implements LeaseStore {
  private readonly turns = new Turns();
  private state: State | undefined;
  private lookedAt = { steady: 0, wall: 0 };

  /** `prefix` is for these leases alone. */
  constructor(
    private readonly objects: LeaseObjects,
    private readonly prefix: string,
  ) {}

  list(): Promise<readonly Lease[]> {
    return this.turns.run(async () => [...(await this.newest()).leases.values()]);
  }

  change(changes: readonly LeaseChange[]): Promise<readonly LeaseResult[]> {
    return this.turns.run(async () => {
      if (this.state === undefined || this.stale) this.state = await this.newest();
      for (;;) {
        const { leases, results } = applied(this.state.leases, changes);
        // A conflict may be with a record that has not been seen here: the newest one says.
        if (results.includes(undefined)) {
          const newest = await this.newest();
          if (newest.number > this.state.number) {
            this.state = newest;
            continue;
          }
          if (results.every((result) => result === undefined)) return results;
        }
        const next: State = { number: this.state.number + 1, leases };
        if (await this.put(next)) {
          this.state = next;
          if (next.number % CLEAN_EVERY === 0) await this.clean();
          return results;
        }
        this.state = await this.newest();
      }
    });
  }

  /** Whether it was put, by this very call. */
  private async put({ number, leases }: State): Promise<boolean> {
    // The id tells our record from another's of the same content when a put ends in doubt.
    const bytes = Buffer.from(`${JSON.stringify({ id: randomUUID(), leases: [...leases.values()] })}\n`);
    const key = this.key(number);
    try {
      if ((await this.objects.putIfAbsent(key, bytes)) === "created") return true;
    } catch (error) {
      const found = await this.objects.get(key);
      if (found === undefined) throw error;
      return found.equals(bytes);
    }
    // Also a put that was tried again below us finds its own first try.
    return (await this.objects.get(key))?.equals(bytes) === true;
  }

  private get stale(): boolean {
    const { steady, wall } = this.lookedAt;
    return performance.now() - steady > STALE_MS || Math.abs(Date.now() - wall) > STALE_MS;
  }

  private async newest(): Promise<State> {
    const lookedAt = { steady: performance.now(), wall: Date.now() };
    let state = this.state;
    if (state === undefined || this.stale) {
      const after = state?.number ?? 0;
      let newest = after;
      for await (const { key } of this.objects.list(`${this.prefix}/`, this.key(after))) {
        newest = Math.max(newest, Number(/(\d+)\.json$/.exec(key)?.[1] ?? 0));
      }
      state = (newest === after ? state : await this.read(newest)) ?? { number: 0, leases: new Map() };
    }
    for (;;) {
      const next = await this.read(state.number + 1);
      if (next === undefined) break;
      state = next;
    }
    this.lookedAt = lookedAt;
    this.state = state;
    return state;
  }

  private async read(number: number): Promise<State | undefined> {
    const bytes = await this.objects.get(this.key(number));
    if (bytes === undefined) return undefined;
    try {
      const { leases } = JSON.parse(bytes.toString("utf8")) as { leases: Lease[] };
      // Undefined does not stand in JSON.
      const whole = leases.map((lease) => ({ ...lease, owner: lease.owner, heir: lease.heir }));
      return { number, leases: new Map(whole.map((lease) => [lease.name, lease])) };
    } catch (cause) {
      throw new TributaryError("TRB-STORE-FAILED", "leases: expected JSON in the newest record", { cause });
    }
  }

  /** What cannot be removed now is removed the next time. */
  private async clean(): Promise<void> {
    try {
      const found: { key: string; modifiedAt: number }[] = [];
      for await (const object of this.objects.list(`${this.prefix}/`)) found.push(object);
      const last = found.at(-1)?.modifiedAt ?? 0;
      await this.objects.delete(
        found.filter(({ modifiedAt }) => modifiedAt < last - KEEP_MS).map(({ key }) => key),
      );
    } catch (error) {
      if (!(error instanceof TributaryError)) throw error;
    }
  }

  private key(number: number): string {
    return `${this.prefix}/${String(number).padStart(DIGITS, "0")}.json`;
  }
}

function applied(
  before: ReadonlyMap<string, Lease>,
  changes: readonly LeaseChange[],
): { readonly leases: ReadonlyMap<string, Lease>; readonly results: readonly LeaseResult[] } {
  const leases = new Map(before);
  const results = changes.map(({ from, to }): LeaseResult => {
    const { name } = from === undefined ? to : from;
    const found = leases.get(name);
    if (found?.counter !== from?.counter || found?.owner !== from?.owner) return undefined;
    if (to === undefined) {
      leases.delete(name);
      return "removed";
    }
    const lease = { ...to, counter: (from?.counter ?? 0) + 1 };
    leases.set(name, lease);
    return lease;
  });
  return { leases, results };
}
