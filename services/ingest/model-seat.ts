import { Retry } from "../base/retry.js";
import { within } from "../base/within.js";
import type { BoundModel } from "../models/bind.js";
import type { DeltaTable } from "../table/delta-table.js";
import type { Progress, Track } from "../table/progress.js";
import type { IngestContext } from "./context.js";
import type { EventBatch } from "./event-batch.js";
import { isFatal, tell } from "./failure.js";
import { Target } from "./target.js";

/** A model that needs longer for a batch is left behind to catch up from raw; its raw table does not wait for it. */
const PATIENCE_MS = 10_000;
/** Catching up that takes less is not worth telling of. */
const TELL_AFTER_MS = 1_000;

/** What a seat needs of its lane. */
export interface SeatHost {
  readonly raw: DeltaTable;
  rawProgress(): Progress;
  /** Runs `work` between batches. */
  exclusively<T>(work: () => Promise<T>): Promise<T>;
  /** Only a new process helps. */
  fatal(error: unknown): void;
}

/**
 * One model of a lane: live while its table is in step with raw, catching up from raw while it is not, quarantined
 * and opened from scratch at every try while it cannot. It never holds up raw or another model.
 */
export class ModelSeat {
  private opened: Target | undefined;
  private live = false;
  private coming: Promise<void> | undefined;
  /** The try that runs, and what the next one waits for. */
  private attempt: Promise<unknown> = Promise.resolve();
  private gate: Promise<void> = Promise.resolve();
  /** Earlier targets that are still being closed. */
  private closing: Promise<unknown> = Promise.resolve();
  private readonly stopping = new AbortController();
  private readonly retry = new Retry(this.stopping.signal);

  private tried: () => void = () => undefined;
  /** Resolves once its first try to get in step is over, however that ended. */
  readonly firstTry = new Promise<void>((resolve) => {
    this.tried = resolve;
  });

  constructor(
    private readonly context: IngestContext,
    readonly model: BoundModel,
    private readonly host: SeatHost,
  ) {}

  /** Undefined while its table does not open. */
  get target(): Target | undefined {
    return this.opened;
  }

  get behind(): boolean {
    return !this.live;
  }

  /** Whether the next live batch, along these tracks, is the next for this model too. */
  takes(raw: Progress, along: ReadonlySet<Track> = NO_TRACKS): boolean {
    return this.live && this.opened!.inStep(raw, along);
  }

  /** Catches up when it is not in step. */
  check(raw: Progress): void {
    if (!this.takes(raw)) this.comeBack(Promise.resolve());
  }

  /**
   * Takes in a live batch once `landed` says that raw has it. Resolves when it has, when it has failed, and when raw
   * has waited long enough: then it catches up by itself.
   */
  async refine(batch: EventBatch, landed: Promise<boolean>): Promise<void> {
    let failed = false;
    const refined = this.opened!.refine(batch, landed).catch((error: unknown) => {
      failed = true;
      this.context.log.error({ err: error, model: this.model.name }, "refining failed; catching up from raw");
    });
    await landed;
    const ended = await within(PATIENCE_MS, refined);
    // A batch that is still at it would be in the way of the catch-up.
    if (!ended || failed) this.comeBack(refined);
  }

  /** Opens the table from scratch now, whatever pause runs. */
  hurry(): void {
    this.retry.hurry();
  }

  /** Runs `work` while nothing here writes the table, then opens it from scratch, whatever pause runs. */
  async repaired<T>(work: () => Promise<T>): Promise<T> {
    let open: () => void = () => undefined;
    this.gate = new Promise((resolve) => {
      open = resolve;
    });
    try {
      await this.attempt;
      return await this.host.exclusively(async () => {
        const result = await work();
        this.drop();
        return result;
      });
    } finally {
      open();
      this.comeBack(Promise.resolve());
      this.hurry();
    }
  }

  private comeBack(after: Promise<unknown>): void {
    if (this.coming !== undefined || this.stopping.signal.aborted) return;
    this.live = false;
    this.context.metrics.behind.set({ model: this.model.name }, 1);
    this.coming = this.catchUp(after)
      .catch((error: unknown) => {
        if (!this.stopping.signal.aborted) throw error;
      })
      .finally(() => {
        this.coming = undefined;
      });
  }

  private async catchUp(after: Promise<unknown>): Promise<void> {
    const { health, log, metrics } = this.context;
    const { name, entityType } = this.model;
    const about = { kind: "model", name, entityType, parkedBytes: 0, held: false } as const;
    let quarantined = false;
    const telling = setTimeout(() => {
      if (quarantined) return;
      health.set({ ...about, state: "catching-up", ...CATCHING_UP, attempts: 0 });
    }, TELL_AFTER_MS).unref();
    this.attempt = after;
    try {
      await after;
      await this.retry.run(
        async () => {
          await this.gate;
          const attempt = this.getInStep();
          this.attempt = attempt.catch(() => undefined).then(this.tried);
          await attempt;
        },
        ({ error, attempts, pauseMs }) => {
          if (isFatal(error)) this.host.fatal(error);
          log.error({ err: error, model: name, attempts, pauseMs }, "a model cannot go on; trying again");
          quarantined = true;
          const nextTryAt = new Date(Date.now() + pauseMs).toISOString();
          const remedy = `tributary table repair ${name}`;
          health.set({ ...about, state: "quarantined", ...tell(error), remedy, attempts, nextTryAt });
          // What is in memory may be what is wrong.
          this.drop();
        },
      );
    } finally {
      clearTimeout(telling);
    }
    health.clear("model", name);
    metrics.behind.set({ model: name }, 0);
  }

  private async getInStep(): Promise<void> {
    this.opened ??= await Target.open(this.context, this.model);
    const target = this.opened;
    const { signal } = this.stopping;
    for (;;) {
      await target.catchUp(this.host.raw, signal);
      // The last step keeps live batches waiting, but not for long.
      let last: Promise<void> | undefined;
      await this.host.exclusively(async () => {
        signal.throwIfAborted();
        let ended = true;
        // Building it anew, or waiting for somebody who does, would keep them waiting for nothing.
        if (!target.outdated && !target.inStep(this.host.rawProgress())) {
          last = target.catchUp(this.host.raw, signal);
          ended = await within(PATIENCE_MS, last);
        }
        // One that still runs would go on beside live batches, on the same connection.
        this.live = ended && target.inStep(this.host.rawProgress());
      });
      await last;
      if (this.live) return;
    }
  }

  private drop(): void {
    this.live = false;
    if (this.opened === undefined) return;
    this.closing = Promise.all([this.closing, this.opened.close()]);
    this.opened = undefined;
  }

  /** Ends once what runs has ended. */
  async close(): Promise<void> {
    this.stopping.abort();
    await this.coming;
    this.drop();
    await this.closing;
  }
}

const NO_TRACKS: ReadonlySet<Track> = new Set();

const CATCHING_UP = {
  code: "",
  reason: "it reads raw to get in step",
  remedy: "nothing; it ends by itself",
} as const;
