import { randomUUID } from "node:crypto";
import type { Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import type { ObjectStore } from "../storage/object-store.js";
import {
  commitKey,
  type DeletionVectorDescriptor,
  encodeCommit,
  type MetaDataAction,
  type ProtocolAction,
} from "./actions.js";
import { type Change, concerns, RecentChanges } from "./changes.js";
import { isClosed, requireOpen } from "./closing.js";
import { commitInfo, stamped } from "./commit-info.js";
import type { CommitRequest, CommitResult, ConflictReason } from "./commit-request.js";
import { definition, mended, type TableSpec } from "./definition.js";
import { advance, type OpenedLog, openLog, requireNoFiles, requireNoGap } from "./delta-log.js";
import { type Attempt, Leftovers } from "./leftovers.js";
import { type FrozenState, frozen, type LogPlace, writeCheckpoint } from "./log-checkpoint.js";
import type { Mask } from "./mask.js";
import { readMask } from "./mask-reader.js";
import { newestReceived } from "./progress.js";
import { type TableState, vectorId } from "./state.js";
import type { TableFile, TableSnapshot } from "./types.js";

const PUT_ATTEMPTS = 5;
/** Records of a log checkpoint that one commit pays for. */
const RECORDS_PER_COMMIT = 200;
const HOUR_MS = 3600 * 1000;
const HOURS: Readonly<Record<string, number>> = { hour: 1, day: 24, week: 7 * 24 };
/** For how long readers may hold a snapshot whose files are gone from newer ones. */
export const RETENTION = "delta.deletedFileRetentionDuration";
/** Older points in time come from raw; every removed file costs a record in every log checkpoint until then. */
export const ONE_HOUR = "interval 1 hours";
/** Delta's default. */
const DEFAULT_RETENTION = "interval 1 week";

export interface TableOptions {
  /** A log checkpoint is written every so many versions. */
  readonly checkpointEvery: number;
  /** A file that nothing names is nobody's once it is so old, in ms; the same for all processes of a lake. */
  readonly orphanAgeMs?: number;
}

/** Nobody takes this long from writing a file to committing it, or reads a file that was removed so long ago. */
const ORPHAN_AGE_MS = 24 * HOUR_MS;

/**
 * One Delta table: its log replayed, refreshed by reading only new commits, and extended by conditional commits.
 * `root` is the table's key prefix in the store. Readers may hold a snapshot as long as they like.
 */
export class DeltaTable {
  private readonly masks = new Map<string, Promise<Mask>>();
  /** Refreshes and commits of this object run one after the other. */
  private readonly turns = new Turns();
  /** Of this process, whichever object of the table met them: a table that fails is opened from scratch. */
  private readonly leftovers: Leftovers;

  readonly store: ObjectStore;
  readonly root: string;
  readonly duck: Duck;
  private readonly state: TableState;
  /** Version of the newest log checkpoint known here. */
  private checkpointed: number;
  private readonly recent = new RecentChanges();
  /** The log checkpoint that is being written beside commits. */
  private writing: Promise<void> | undefined;

  private constructor(
    private readonly place: LogPlace,
    private readonly options: TableOptions,
    { state, checkpoint }: OpenedLog,
  ) {
    this.store = place.store;
    this.root = place.root;
    this.duck = place.duck;
    this.state = state;
    this.checkpointed = checkpoint ?? 0;
    this.leftovers = Leftovers.of(place.store, place.root);
  }

  /** Undefined when there is no table at `root`. Errors: TRB-TABLE-CORRUPT, `details` telling what is amiss. */
  static async open(
    store: ObjectStore,
    root: string,
    duck: Duck,
    options: TableOptions,
  ): Promise<DeltaTable | undefined> {
    const place = { store, root, duck };
    const opened = await openLog(place);
    return opened === undefined ? undefined : new DeltaTable(place, options, opened);
  }

  /**
   * Opens the table at `root`, or makes it as its version 0; of two makers one wins and both get the winner's. A table
   * that an older Tributary made is brought up to its spec by one commit. Writers open tables this way.
   * Errors: as `open`; TRB-LAKE-CLOSED.
   */
  static async openOrCreate(
    store: ObjectStore,
    root: string,
    duck: Duck,
    options: TableOptions,
    spec: TableSpec,
  ): Promise<DeltaTable> {
    const place = { store, root, duck };
    const existing = await DeltaTable.open(store, root, duck, options);
    if (existing !== undefined) {
      await requireNoGap(existing.place, existing.state);
      existing.requireOpen();
      await existing.mend(spec);
      return existing;
    }
    if (spec.irreplaceable) await requireNoFiles(place);
    const request = { operation: "CREATE TABLE", actions: definition(spec, randomUUID()) } as const;
    const info = commitInfo(request, randomUUID(), undefined);
    await store.putIfAbsent(
      commitKey(root, 0),
      encodeCommit(stamped([info, ...request.actions], 0, Date.now(), undefined)),
    );
    const created = await DeltaTable.open(store, root, duck, options);
    if (created === undefined)
      throw new TributaryError("TRB-STORE-FAILED", "a new table's log is not readable");
    await requireOpen(store);
    return created;
  }

  private async mend(spec: TableSpec): Promise<void> {
    for (;;) {
      const { protocol, metaData, files } = this.state;
      const hasVectors = [...files.values()].some(({ add }) => add.deletionVector !== undefined);
      const actions = mended({ protocol: protocol!, metaData: metaData!, hasVectors }, spec);
      if (actions === undefined) return;
      const { version } = this.state;
      const result = await this.commit({
        operation: "UPGRADE PROTOCOL",
        actions,
        expect: new Map(),
        basedOn: version,
        serializable: true,
      });
      // After a conflict another writer may have done it.
      if (result.kind === "committed") return;
    }
  }

  /** The table's own id in its metaData; stays with it for life. */
  get id(): string {
    return this.state.metaData!.id;
  }

  get protocol(): ProtocolAction {
    return this.state.protocol!;
  }

  /** As of the last refresh or commit of this object. */
  get metaData(): MetaDataAction {
    return this.state.metaData!;
  }

  /** The snapshot as of the last refresh or commit of this object. */
  get snapshot(): TableSnapshot {
    return this.state.snapshot();
  }

  /** What has changed after `version`, up to the version `upTo`; undefined when that is not known any more. */
  changes(version: number, upTo: number): readonly Change[] | undefined {
    return this.recent.between(version, upTo);
  }

  /** The newest changes that are known, newest first. */
  newestChanges(): Iterable<Change> {
    return this.recent.newest();
  }

  async refresh(): Promise<TableSnapshot> {
    return this.turns.run(async () => {
      await this.advance();
      return this.state.snapshot();
    });
  }

  /** Takes in new commits; tells an attempt of its own when it is among them, whether or not this resolves. */
  private async advance(attempt?: Attempt): Promise<void> {
    await advance(this.place, this.state, (change, actions) => {
      this.recent.push(change);
      if (attempt !== undefined && actions.some((a) => a.commitInfo?.txnId === attempt.txnId))
        attempt.stands = change.version;
    });
    this.trim();
  }

  /** As `Leftovers.settle`, `discard` and `inFlight`. */
  settle(): Promise<void> {
    return this.leftovers.settle();
  }

  discard(keys: readonly string[]): Promise<void> {
    return this.leftovers.discard(keys);
  }

  get inFlight(): Set<string> {
    return this.leftovers.inFlight;
  }

  get orphanAgeMs(): number {
    return this.options.orphanAgeMs ?? ORPHAN_AGE_MS;
  }

  /** For how long a file that is gone from the newest version may be needed. */
  get retentionMs(): number {
    const text = this.snapshot.properties.get(RETENTION) ?? DEFAULT_RETENTION;
    const [, count, unit] = /^interval (\d+) (hour|day|week)s?$/.exec(text) ?? [];
    return unit === undefined ? Number.POSITIVE_INFINITY : Number(count) * HOURS[unit]! * HOUR_MS;
  }

  /**
   * Paths below the table's folder that the newest version names, that a version within the retention names, or that a
   * commit under way may name.
   */
  async named(): Promise<Set<string>> {
    await this.refresh();
    const named = this.state.named();
    for (const key of this.leftovers.held()) named.add(key.slice(this.root.length + 1));
    return named;
  }

  /** The masked rows of a file of some snapshot; undefined when none are. Cached; never changed in place. */
  async mask(file: TableFile): Promise<Mask | undefined> {
    const vector = file.add.deletionVector;
    if (vector === undefined) return undefined;
    const id = maskId(file.path, vector);
    let mask = this.masks.get(id);
    if (mask === undefined) {
      mask = readMask(this.place, file);
      this.masks.set(id, mask);
      mask.catch(() => this.masks.delete(id));
    }
    return mask;
  }

  /** Lets a writer hand over masks it has just made, so that they are not read back. */
  rememberMask(path: string, vector: DeletionVectorDescriptor, mask: Mask): void {
    this.masks.set(maskId(path, vector), Promise.resolve(mask));
  }

  /**
   * Publishes the actions as the next version, if everything in `expect` and every file they remove is still in
   * force. A concurrent commit that touches neither is stepped over. Files the actions name must be durable before.
   * Errors: TRB-STORE-FAILED when the store's answer stays ambiguous; TRB-LAKE-CLOSED.
   */
  async commit(request: CommitRequest): Promise<CommitResult> {
    const result = await this.turns.run(() => this.tryCommit(request));
    // Beside the commits to come. This one stands, come what may: without a log checkpoint opening only takes longer,
    // and the next commit tries again.
    if (result.kind === "committed" && this.wantsCheckpoint())
      this.write(frozen(this.state)).catch(() => undefined);
    return result;
  }

  private async tryCommit(request: CommitRequest): Promise<CommitResult> {
    const txnId = randomUUID();
    const attempt: Attempt = { txnId, actions: [], files: request.files ?? [] };
    try {
      await this.settle();
      return await this.offer(attempt, request);
    } catch (error) {
      if (attempt.offered === undefined) await this.discard(attempt.files);
      else this.leftovers.doubt(attempt);
      throw error;
    }
  }

  private async offer(attempt: Attempt, request: CommitRequest): Promise<CommitResult> {
    let failure: unknown;
    // The version after the newest one known here is offered at once: where it is free, nothing has come in between.
    for (let failures = 0, looked = false; ; looked = true) {
      if (looked) {
        // A put that failed may have happened, at once or late (I11): what stands there now decides.
        await this.advance(attempt);
        if (attempt.stands !== undefined) return { kind: "committed", version: attempt.stands };
      }
      this.requireOpen();
      if (failures >= PUT_ATTEMPTS) throw failure;
      const reason = this.conflict(request);
      if (reason !== undefined && !looked) continue;
      if (reason !== undefined) {
        // Offered for a version that is still free, it may come about yet: its files are not the caller's again.
        if (attempt.offered === this.state.version + 1) throw failure;
        return { kind: "conflict", reason };
      }
      const version = this.state.version + 1;
      if (attempt.offered !== version) {
        const actions = [...request.actions, ...newestReceived(this.state, request.newest)];
        const info = commitInfo({ ...request, actions }, attempt.txnId, this.state);
        attempt.actions = stamped([info, ...actions], version, Date.now(), this.state);
        attempt.offered = version;
      }
      try {
        // This is the commit point: before it the batch does not exist, after it it does.
        const outcome = await this.store.putIfAbsent(
          commitKey(this.root, version),
          encodeCommit(attempt.actions),
        );
        if (outcome === "exists") continue;
      } catch (cause) {
        failure = cause;
        failures++;
        continue;
      }
      this.recent.push(this.state.apply(version, attempt.actions));
      return { kind: "committed", version };
    }
  }

  private requireOpen(): void {
    if (isClosed(this.state.domains)) throw new TributaryError("TRB-LAKE-CLOSED");
  }

  private conflict(request: CommitRequest): ConflictReason | undefined {
    if (this.state.metaDataVersion > request.basedOn) return "metadata";
    if (request.staged !== undefined && request.staged.ms > this.orphanAgeMs / 2) return "age";
    for (const [domain, configuration] of request.expect) {
      if (this.state.domains.get(domain) !== configuration) return "position";
    }
    for (const { remove } of request.actions) {
      if (remove === undefined) continue;
      const live = this.state.files.get(decodeURIComponent(remove.path));
      if (live === undefined || vectorId(live.add.deletionVector) !== vectorId(remove.deletionVector))
        return "file";
    }
    return request.serializable && this.overtaken(request) ? "version" : undefined;
  }

  private overtaken({ basedOn, slots }: CommitRequest): boolean {
    const { version } = this.state;
    if (version <= basedOn) return false;
    if (slots === undefined) return true;
    return this.recent.between(basedOn, version)?.some((change) => concerns(change, slots)) ?? true;
  }

  /** A log checkpoint holds the whole state: the larger it is, the more commits share its cost. */
  private wantsCheckpoint(): boolean {
    if (this.writing !== undefined) return false;
    const commits = this.state.version - this.checkpointed;
    const records = this.state.files.size + this.state.removed.size;
    return commits >= this.options.checkpointEvery && commits * RECORDS_PER_COMMIT >= records;
  }

  /** Writes a log checkpoint of the newest version known here. */
  async checkpoint(): Promise<void> {
    await this.settled();
    await this.write(frozen(this.state));
  }

  /** Resolves when no log checkpoint is being written. */
  async settled(): Promise<void> {
    while (this.writing !== undefined) await this.writing.catch(() => undefined);
  }

  private write(state: FrozenState): Promise<void> {
    const writing = writeCheckpoint(this.place, state)
      .then(() => {
        this.checkpointed = state.version;
      })
      .finally(() => {
        this.writing = undefined;
      });
    this.writing = writing;
    return writing;
  }

  /** Keeps what is remembered in proportion to the live files. A reader of an old snapshot reads masks back. */
  private trim(): void {
    this.state.trimRemoved(Date.now() - this.retentionMs);
    if (this.masks.size < 2 * this.state.files.size + 64) return;
    const live = new Set<string>();
    for (const { path, add } of this.state.files.values())
      if (add.deletionVector !== undefined) live.add(maskId(path, add.deletionVector));
    for (const id of this.masks.keys()) if (!live.has(id)) this.masks.delete(id);
  }
}

/** By file, too: other writers' inline vectors of two files may be the same text, and the files have other numbers of rows. */
const maskId = (path: string, vector: DeletionVectorDescriptor): string => `${vectorId(vector)} ${path}`;
