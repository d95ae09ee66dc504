import type { DuckDBConnection } from "@duckdb/node-api";
import { isOutOfMemory } from "../base/engine-error.js";
import type { DeltaTable } from "../table/delta-table.js";
import { type Progress, progressOf, type Track } from "../table/progress.js";
import type { TableSnapshot } from "../table/types.js";
import type { UpsertWriter } from "../table/upsert.js";
import { bury, type Originals } from "./burial.js";
import type { IngestContext } from "./context.js";
import { EventBatch } from "./event-batch.js";
import { type Taken, takeIn } from "./intake.js";
import type { Poison } from "./model-failure.js";
import { lightOf, type Slice, slicesOf, whole } from "./payloads.js";
import type { Refiner } from "./refine.js";
import { isOf } from "./refined-table.js";
import { ahead, beyond, originals, type RawView, rangesOf, readRange, type Selection } from "./replay.js";

/** Events that are upserted at once. */
const BATCH_EVENTS = 20_000;
/** How often a table that is far behind looks for light events that have just landed. */
const EXPRESS_MS = 500;
/** Decoded bytes a tenant may have taken in out of turn, each time. */
const EXPRESS_BYTES = 1024 * 1024;
/** A raw table of more events than this is not searched for light ones from its beginning. */
const EXPRESS_EVENTS = 200_000;
const NOWHERE: Progress = new Map();

export interface CatchUpOptions {
  /**
   * Takes in light events of every tenant beyond those in turn, again and again, so that nobody waits for another
   * tenant's mass of data. Not for a table that nobody sees yet.
   */
  readonly express: boolean;
  /** Done between ranges, told what has been read since the last time. */
  readonly between?: (read: Portion) => Promise<void>;
  /** Along which tracks: the others are for somebody else. */
  readonly isOurs: (track: Track) => boolean;
  /** Gives up after the slice that runs: what is in stays, and the next catch-up goes on behind it. */
  readonly signal: AbortSignal;
  /** Takes in nothing but these. */
  readonly only?: Selection;
  /** Told of events that the model cannot digest, as `Taking.setAside`; by default they become dead letters. */
  readonly setAside?: (events: EventBatch, poison: readonly Poison[], originals: Originals) => Promise<void>;
}

export interface Portion {
  readonly rows: number;
  /** Of events as they are in memory. */
  readonly bytes: number;
}

/** Brings one table to where raw stands, range by range, reading raw alone; never the stream. */
export class CatchUp {
  private rangeEvents: number;
  /** What has been taken in out of turn. */
  private expressed: Progress = NOWHERE;
  private lookedAt = 0;
  private read = { rows: 0, bytes: 0 };

  constructor(
    private readonly context: IngestContext,
    private readonly refiner: Refiner,
    private readonly writer: UpsertWriter,
    private readonly raw: DeltaTable,
    private readonly options: CatchUpOptions,
  ) {
    this.rangeEvents = context.decoding.rangeEvents;
  }

  /**
   * Resolves when the table has all that raw had at some moment of the call, or with a goal, which raw must have
   * reached, when it stands there and not beyond; rejects once it has given up.
   */
  async run(goal?: Progress): Promise<void> {
    for (;;) {
      const snapshot = await this.raw.refresh();
      const own = await this.writer.table.refresh();
      // Another worker's model may have taken the table over.
      if (!isOf(own, this.refiner.model)) return;
      const from = progressOf(own);
      const to = goal === undefined ? this.beyond(snapshot, from) : ahead(goal, from);
      if (to.size === 0) return;
      this.expressed = later(this.expressed, this.hasMany(snapshot) ? progressOf(snapshot) : from);
      try {
        await this.context.duck.with(async (connection) => {
          await this.takeRanges(this.view(snapshot, connection), from, to, own.replacedAt);
        });
        this.rangeEvents = Math.min(this.rangeEvents * 2, this.context.decoding.rangeEvents);
      } catch (error) {
        // Large payloads: fewer of them are read at once.
        if (!isOutOfMemory(error) || this.rangeEvents === 1) throw error;
        this.rangeEvents = Math.ceil(this.rangeEvents / 8);
      }
    }
  }

  private view(snapshot: TableSnapshot, connection: DuckDBConnection): RawView {
    const { entityType } = this.refiner.model;
    const { only } = this.options;
    return { table: this.raw, snapshot, connection, entityType, ...(only === undefined ? {} : { only }) };
  }

  private beyond(raw: TableSnapshot, from: Progress): Map<Track, string> {
    return new Map([...beyond(raw, from)].filter(([track]) => this.options.isOurs(track)));
  }

  /** Of so much, light events are looked for only among those that land from now on. */
  private hasMany(snapshot: TableSnapshot): boolean {
    return snapshot.files.reduce((rows, file) => rows + file.rows, 0) > EXPRESS_EVENTS;
  }

  private async takeRanges(view: RawView, start: Progress, to: Progress, replacedAt: number): Promise<void> {
    let from = start;
    for (const end of await rangesOf(view, start, to, this.rangeEvents)) {
      if (!(await this.takeRange(view, from, end, replacedAt))) return;
      from = new Map([...from, ...end]);
      const { read } = this;
      this.read = { rows: 0, bytes: 0 };
      await this.options.between?.(read);
    }
  }

  /**
   * False after a conflict: another writer was here, and what is left is to be found out anew. Also where the table has
   * become another one since, which lacks what was put in of the range before.
   */
  private async takeRange(
    view: RawView,
    from: Progress,
    end: Progress,
    replacedAt: number,
  ): Promise<boolean> {
    const to = new Map([...end].filter(([track, position]) => position > (from.get(track) ?? "")));
    const limits = { events: BATCH_EVENTS, bytes: this.context.decoding.sliceBytes };
    if (!(await readRange(view, from, to, limits, (batch) => this.takeBatch(view, batch, replacedAt))))
      return false;
    // Positions move with the last upsert alone: a range is read in no order, and an upsert may be repeated.
    const nothing = whole(new EventBatch(view.entityType, this.context.stream));
    return isTaken(await this.take(view, nothing, from, to, replacedAt));
  }

  private async takeBatch(view: RawView, batch: EventBatch, replacedAt: number): Promise<boolean> {
    this.read.rows += batch.count;
    this.read.bytes += batch.byteCount;
    for await (const slice of slicesOf(batch, this.context.decoding)) {
      this.options.signal.throwIfAborted();
      if (!isTaken(await this.take(view, slice, NOWHERE, NOWHERE, replacedAt))) return false;
      // A permit is given back before another one is asked for.
      slice.release();
      if (this.options.express) await this.takeLight();
    }
    return true;
  }

  /** Light events that wait behind what is being taken in: positions do not move, and they come again in their turn. */
  private async takeLight(): Promise<void> {
    const now = performance.now();
    if (now - this.lookedAt < EXPRESS_MS) return;
    const { decoding, duck } = this.context;
    const snapshot = await this.raw.refresh();
    const to = this.beyond(snapshot, this.expressed);
    if (to.size > 0) {
      await duck.with(async (connection) => {
        const view = this.view(snapshot, connection);
        const limits = { events: BATCH_EVENTS, bytes: decoding.sliceBytes };
        await readRange(view, this.expressed, to, limits, async (batch) => {
          const light = lightOf(batch, EXPRESS_BYTES);
          for await (const slice of slicesOf(light, decoding)) {
            await this.take(view, slice, NOWHERE, NOWHERE);
            slice.release();
          }
          return true;
        });
      });
      this.expressed = progressOf(snapshot);
    }
    this.lookedAt = performance.now();
  }

  private take(
    view: RawView,
    slice: Slice,
    from: Progress,
    to: Progress,
    replacedAt?: number,
  ): Promise<Taken> {
    const { context } = this;
    const { model } = this.refiner;
    const { setAside = (events, poison, whole) => bury(context, model, events, poison, whole) } =
      this.options;
    return takeIn(this.refiner, this.writer, slice, {
      from,
      to,
      slots: context.ours.slots,
      ...(replacedAt === undefined ? {} : { replacedAt }),
      landed: Promise.resolve(true),
      suspects: context.suspects,
      setAside: (events, poison) =>
        setAside(events, poison, (stream, wanted) =>
          // The reading connection is in the middle of its rows.
          context.duck.with((connection) => originals({ ...view, connection }, stream, wanted)),
        ),
    });
  }
}

/** Of each track the later position. */
const later = (a: Progress, b: Progress): Progress =>
  new Map([...a, ...[...b].filter(([track, position]) => position > (a.get(track) ?? ""))]);

const isTaken = ({ kind }: Taken): boolean => kind === "taken";
