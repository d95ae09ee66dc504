import { createHash } from "node:crypto";
import type { Logger } from "pino";
import { LeaseCoordinator } from "../lease/lease-coordinator.js";
import { type LeaseStore, newLease } from "../lease/lease-store.js";
import { ObjectLeaseStore } from "../lease/object-lease-store.js";
import type { BoundModel } from "../models/bind.js";
import { forgetWorker, readWorkers } from "../status/ingest-status.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { Track } from "../table/progress.js";

/**
 * The other workers of a lake, as far as anybody can tell: what wants one owner at a time is shared out by it. Safety
 * never rests on it.
 */
export interface Crew {
  /**
   * Whether this worker looks after the table: compacts and sweeps it, builds it anew, and moves it along tracks that
   * nobody holds. Names are those of `tributary table ls`.
   */
  tends(table: string): boolean;
  /** Whether nobody holds the track who would move this worker's tables along it. */
  isFree(track: Track): boolean;
  /** Whether another worker has a model of this fingerprint in force. */
  runs(fingerprint: string): boolean;
  /** In ms, how often to look for what others have left; undefined where there are none. */
  readonly lookMs: number | undefined;
}

/** Of one process that has everything to itself. */
export const ALONE: Crew = {
  tends: () => true,
  isFree: () => true,
  runs: () => false,
  lookMs: undefined,
};

/** All in ms. */
export interface CrewTimes {
  readonly look: number;
  /** A worker whose status has stood still for so long is gone, or as good as gone. They write every 15 s. */
  readonly gone: number;
  /** Before that nobody can know who holds what; a track on its way from one to another is nobody's for less than that. */
  readonly free: number;
  /** What is left of one that is gone is removed after so long. */
  readonly forget: number;
  /** Tending is no matter of seconds: what its leases cost counts. */
  readonly lease: number;
}

const TIMES: CrewTimes = { look: 5_000, gone: 45_000, free: 20_000, forget: 10 * 60_000, lease: 30_000 };
const MIXED_MS = 2_000;
const CALM_MS = 30_000;

interface Colleague {
  readonly writtenAt: string;
  /** By our own clock: those of two machines are never compared. */
  readonly seenAt: number;
  readonly fingerprints: readonly string[];
  readonly holds: Readonly<Record<string, readonly string[]>>;
}

/** Workers with the same models share the tables out among themselves; those of an older release have tables of theirs. */
export const projectOf = (models: readonly Pick<BoundModel, "name" | "fingerprint">[]): string =>
  createHash("sha256")
    .update(
      models
        .map(({ name, fingerprint }) => `${name}@${fingerprint}`)
        .sort()
        .join("\n"),
    )
    .digest("hex")
    .slice(0, 16);

export class SharedCrew implements Crew {
  private readonly leases: LeaseStore;
  private readonly coordinator: LeaseCoordinator;
  private readonly colleagues = new Map<string, Colleague>();
  /** Track → when it was last seen in somebody's hands. */
  private readonly heldAt = new Map<Track, number>();
  private readonly wanted = new Set<string>();
  private readonly startedAt = performance.now();
  private timer: NodeJS.Timeout | undefined;
  private looking: Promise<void> | undefined;

  constructor(
    private readonly store: ObjectStore,
    private readonly worker: string,
    private readonly models: readonly BoundModel[],
    private readonly log: Pick<Logger, "warn">,
    private readonly times = TIMES,
  ) {
    this.leases = new ObjectLeaseStore(store, `leases/tables-${projectOf(models)}`);
    this.coordinator = new LeaseCoordinator({
      store: this.leases,
      worker,
      scope: "",
      user: { taken: () => undefined, leaving: async () => undefined, lost: () => undefined },
      log,
      durationMs: times.lease,
    });
  }

  /** Errors: TRB-STORE-FAILED. */
  async start(): Promise<void> {
    await this.look();
    await this.coordinator.start();
    this.timer = setInterval(() => {
      this.looking ??= this.look()
        .catch((error: unknown) => this.log.warn({ err: error }, "other workers cannot be looked at"))
        .finally(() => {
          this.looking = undefined;
        });
    }, this.times.look).unref();
  }

  tends(table: string): boolean {
    // From the next look on somebody has it.
    this.wanted.add(table);
    return this.coordinator.owns(table);
  }

  isFree(track: Track): boolean {
    const now = performance.now();
    return (
      now - this.startedAt > this.times.free &&
      now - (this.heldAt.get(track) ?? Number.NEGATIVE_INFINITY) > this.times.free
    );
  }

  runs(fingerprint: string): boolean {
    return this.present().some(({ fingerprints }) => fingerprints.includes(fingerprint));
  }

  /** What somebody of another release holds, this one's tables have to be moved along meanwhile, and soon. */
  get lookMs(): number {
    return this.present().some((colleague) => !this.isAlike(colleague)) ? MIXED_MS : CALM_MS;
  }

  private present(): Colleague[] {
    const now = performance.now();
    return [...this.colleagues.values()].filter(({ seenAt }) => now - seenAt < this.times.gone);
  }

  private isAlike({ fingerprints }: Colleague): boolean {
    return (
      fingerprints.length === this.models.length &&
      this.models.every(({ fingerprint }) => fingerprints.includes(fingerprint))
    );
  }

  private async look(): Promise<void> {
    const now = performance.now();
    const found = await readWorkers(this.store);
    for (const [name, { writtenAt, fingerprints, holds }] of found) {
      if (name === this.worker) continue;
      const before = this.colleagues.get(name);
      const seenAt = before === undefined || before.writtenAt !== writtenAt ? now : before.seenAt;
      this.colleagues.set(name, { writtenAt, seenAt, fingerprints, holds });
      if (now - seenAt > this.times.forget) await forgetWorker(this.store, name);
    }
    for (const name of this.colleagues.keys()) if (!found.has(name)) this.colleagues.delete(name);
    for (const colleague of this.present()) {
      if (!this.isAlike(colleague)) continue;
      for (const [stream, partitions] of Object.entries(colleague.holds))
        for (const partition of partitions) this.heldAt.set(`${stream}.${partition}`, now);
    }
    await this.register();
  }

  /** A lease for each table that somebody has asked for. */
  private async register(): Promise<void> {
    const known = new Set((await this.leases.list()).map(({ name }) => name));
    const missing = [...this.wanted].filter((name) => !known.has(name));
    if (missing.length > 0) {
      await this.leases.change(missing.map((name) => ({ from: undefined, to: newLease(name) })));
    }
  }

  async close(): Promise<void> {
    clearInterval(this.timer);
    await this.looking;
    await this.coordinator.close();
    await forgetWorker(this.store, this.worker).catch(() => undefined);
  }
}
