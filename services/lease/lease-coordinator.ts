import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { Turns } from "../base/turns.js";
import { within } from "../base/within.js";
import { planLeases } from "./lease-plan.js";
import type { Lease, LeaseChange, LeaseContent, LeaseResult, LeaseStore } from "./lease-store.js";

/** What a worker does with its leases. Told in order; none of it throws. */
export interface LeaseUser {
  taken(leases: readonly Lease[]): void;
  /** To be handed over: resolves when the work has come to rest and its checkpoints are written. */
  leaving(names: readonly string[]): Promise<void>;
  /** Not ours any more: handed over, done, or taken by another without a word. */
  lost(names: readonly string[]): void;
}

/** Both in ms. The steady one may stand still while the machine sleeps; the other one may jump when it is set. */
export interface LeaseClock {
  steady(): number;
  wall(): number;
}

export interface CoordinatorOptions {
  readonly store: LeaseStore;
  /** Unique to this process: two of one name would take each other's leases for their own. */
  readonly worker: string;
  /** Only leases whose names begin so. */
  readonly scope: string;
  readonly user: LeaseUser;
  readonly log: Pick<Logger, "warn">;
  /** How long a lease lasts that is not renewed. */
  readonly durationMs?: number;
  readonly clock?: LeaseClock;
}

interface Held {
  /** As it stands in the store, for all that we know. */
  lease: Lease;
  /** When the change that made it so was begun. */
  at: { readonly steady: number; readonly wall: number };
  leaving: boolean;
}

const DURATION_MS = 10_000;
/** Looks and renewals in the life of a lease. */
const LOOKS = 10;
const RENEWALS = 3;
/** How many looks what was handed over waits for its heir. */
const HEIR_LOOKS = 4;

const ownClock: LeaseClock = { steady: () => performance.now(), wall: () => Date.now() };

/**
 * One worker's part in sharing leases: renews what it has, takes what nobody has, asks for what others have too much of
 * and hands over what others ask for. Any number of workers; none of them leads.
 */
export class LeaseCoordinator {
  private readonly durationMs: number;
  private readonly clock: LeaseClock;
  private readonly held = new Map<string, Held>();
  /** When each lease was first seen with the counter it has. */
  private readonly still = new Map<string, { readonly counter: number; since: number }>();
  private lookedAt: number | undefined;
  private readonly turns = new Turns();
  private readonly stopping = new AbortController();
  private readonly handovers = new Set<Promise<void>>();
  private looking: Promise<void> = Promise.resolve();

  constructor(private readonly options: CoordinatorOptions) {
    this.durationMs = options.durationMs ?? DURATION_MS;
    this.clock = options.clock ?? ownClock;
  }

  /** Takes its first share, then goes on by itself. Errors: TRB-STORE-FAILED when the store cannot be reached now. */
  async start(): Promise<void> {
    await this.look();
    this.looking = this.keepLooking();
  }

  private async keepLooking(): Promise<void> {
    const { signal } = this.stopping;
    while (!signal.aborted) {
      await sleep(this.durationMs / LOOKS, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted) return;
      await this.look().catch((error: unknown) =>
        this.options.log.warn({ err: error }, "leases cannot be looked at"),
      );
    }
  }

  /** Whether no other worker can have taken the lease yet, by our own clocks: who was frozen finds out here. */
  owns(name: string): boolean {
    const held = this.held.get(name);
    if (held === undefined) return false;
    const { steady, wall } = held.at;
    return (
      this.clock.steady() - steady < this.durationMs && Math.abs(this.clock.wall() - wall) < this.durationMs
    );
  }

  /** One round of all there is to do. */
  look(): Promise<void> {
    return this.turns.run(async () => {
      const leases = await this.list();
      this.reconcile(leases);
      await this.renew();
      await this.share(leases);
    });
  }

  /**
   * Writes what has become of the work; leases that are not ours any more are left alone. Resolves to the names of those
   * that were written, durable. Errors: TRB-STORE-FAILED.
   */
  update(
    changes: ReadonlyMap<string, Partial<Pick<LeaseContent, "checkpoint" | "finished">>>,
  ): Promise<ReadonlySet<string>> {
    return this.turns.run(async () => {
      const written = new Set<string>();
      let left = [...changes];
      for (let tries = 0; left.length > 0 && tries < RENEWALS; tries++) {
        // An heir's question changes a lease under us: we still have it.
        if (tries > 0) this.reconcile(await this.list());
        left = left.filter(([name]) => this.held.has(name));
        const results = await this.changeHeld(
          left.map(([name, change]) => ({
            name,
            change: change.finished === true ? { ...change, owner: undefined, heir: undefined } : change,
          })),
        );
        left = left.filter(([name, change], i) => {
          if (results[i] === undefined) return true;
          written.add(name);
          if (change.finished === true) this.drop([name]);
          return false;
        });
      }
      return written;
    });
  }

  /** Hands over all it has. */
  async close(): Promise<void> {
    if (this.stopping.signal.aborted) return;
    this.stopping.abort();
    await this.looking;
    // Those that leave already are waited for beside the rest.
    this.handOver([...this.held.keys()].filter((name) => !this.held.get(name)!.leaving));
    await Promise.all(this.handovers);
  }

  private async list(): Promise<readonly Lease[]> {
    const all = await this.options.store.list();
    const leases = all.filter(({ name }) => name.startsWith(this.options.scope));
    const now = this.clock.steady();
    // Time in which this worker did not look, frozen or without an answer, proves nothing about the others.
    const blind = now - (this.lookedAt ?? now);
    if (blind > this.durationMs / 2) for (const still of this.still.values()) still.since += blind;
    this.lookedAt = now;
    const names = new Set(leases.map(({ name }) => name));
    for (const name of this.still.keys()) if (!names.has(name)) this.still.delete(name);
    for (const { name, counter } of leases) {
      if (this.still.get(name)?.counter !== counter) this.still.set(name, { counter, since: now });
    }
    return leases;
  }

  /** What we hold, as the store has it. */
  private reconcile(leases: readonly Lease[]): void {
    const found = new Map(leases.map((lease) => [lease.name, lease]));
    const lost: string[] = [];
    for (const [name, held] of this.held) {
      const lease = found.get(name);
      if (lease?.owner !== this.options.worker) lost.push(name);
      else held.lease = lease;
    }
    this.drop(lost);
  }

  private drop(names: readonly string[]): void {
    const lost = names.filter((name) => this.held.delete(name));
    if (lost.length > 0) this.options.user.lost(lost);
  }

  private async renew(): Promise<void> {
    const due = [...this.held].filter(
      ([name, { at }]) => this.clock.steady() - at.steady >= this.durationMs / RENEWALS || !this.owns(name),
    );
    await this.changeHeld(due.map(([name]) => ({ name, change: {} })));
  }

  /** Undefined for those that another has changed meanwhile: the next look tells how. */
  private async changeHeld(
    changes: readonly { readonly name: string; readonly change: Partial<LeaseContent> }[],
  ): Promise<readonly LeaseResult[]> {
    if (changes.length === 0) return [];
    const at = this.now();
    const results = await this.options.store.change(
      changes.map(({ name, change }): LeaseChange => {
        const { lease } = this.held.get(name)!;
        return { from: lease, to: { ...lease, ...change } };
      }),
    );
    changes.forEach(({ name }, i) => {
      const lease = results[i];
      const held = this.held.get(name);
      if (held === undefined || lease === undefined || lease === "removed") return;
      held.lease = lease;
      held.at = at;
    });
    return results;
  }

  private now(): Held["at"] {
    return { steady: this.clock.steady(), wall: this.clock.wall() };
  }

  /** Takes, asks and hands over. */
  private async share(leases: readonly Lease[]): Promise<void> {
    const { worker, store, user } = this.options;
    if (this.stopping.signal.aborted) return;
    const wanted = [...this.held].filter(
      ([, { lease, leaving }]) => !leaving && lease.heir !== undefined && lease.heir !== worker,
    );
    if (wanted.length > 0) this.handOver(wanted.map(([name]) => name));
    const now = this.clock.steady();
    const { take, ask } = planLeases({
      seen: leases.map((lease) => ({ lease, stillMs: now - this.still.get(lease.name)!.since })),
      worker,
      held: this.held,
      durationMs: this.durationMs,
      heirMs: (this.durationMs / LOOKS) * HEIR_LOOKS,
    });
    const changes: LeaseChange[] = take.map((lease) => ({
      from: lease,
      to: { ...lease, owner: worker, heir: undefined },
    }));
    if (ask !== undefined) changes.push({ from: ask, to: { ...ask, heir: worker } });
    if (changes.length === 0) return;
    const at = this.now();
    const results = await store.change(changes);
    const taken: Lease[] = [];
    for (const lease of results) {
      if (lease === undefined || lease === "removed" || lease.owner !== worker) continue;
      this.held.set(lease.name, { lease, at, leaving: false });
      taken.push(lease);
    }
    if (taken.length > 0) user.taken(taken);
  }

  private handOver(names: readonly string[]): void {
    if (names.length === 0) return;
    for (const name of names) this.held.get(name)!.leaving = true;
    const work = this.release(names)
      .catch((error: unknown) => {
        // Unreleased, they run out by themselves.
        this.options.log.warn({ err: error }, "leases could not be handed over");
        this.drop(names);
      })
      .finally(() => this.handovers.delete(work));
    this.handovers.add(work);
  }

  private async release(names: readonly string[]): Promise<void> {
    // An heir waits no longer than for somebody who has died.
    await within(this.durationMs, this.options.user.leaving(names));
    await this.turns.run(async () => {
      for (let tries = 0; tries < RENEWALS; tries++) {
        if (tries > 0) this.reconcile(await this.list());
        const left = names.filter((name) => this.held.has(name));
        const results = await this.changeHeld(left.map((name) => ({ name, change: { owner: undefined } })));
        this.drop(left.filter((_, i) => results[i] !== undefined));
      }
      this.drop(names);
    });
  }
}
