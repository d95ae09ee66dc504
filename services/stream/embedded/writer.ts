import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { assert, TributaryError } from "../../base/errors.js";
import {
  createDurably,
  ensureFolder,
  type FileOps,
  isAbsent,
  nodeFiles,
  type OpenFile,
  writeFully,
} from "../../base/files.js";
import { acquireLock, type ProcessLock } from "../../base/process-lock.js";
import { rangeOfSlot } from "../../base/slots.js";
import type { Appended, ChangeStreamWriter, OutgoingEvents } from "../change-stream.js";
import { streamDown } from "../failures.js";
import { AppendGroup, type PendingAppend } from "./append-group.js";
import {
  closedPath,
  consumersFolder,
  logFolder,
  openIdentity,
  type StreamIdentity,
  segmentName,
  segmentPath,
} from "./folder.js";
import { encodeSegmentHeader, MARKER_BYTES, MAX_FRAME_BYTES, segmentHeaderBytes } from "./format.js";
import { readAllLowWater } from "./low-water.js";
import { endsBefore, type Recovered, recover, type SegmentSummary } from "./recovery.js";

export interface EmbeddedLogOptions {
  readonly folder: string;
  readonly partitions: number;
  /** A segment is closed when the next frame would make it larger. */
  readonly segmentBytes: number;
  /** Capacity of each of the two groups that take turns; a larger append gets one of its own. */
  readonly groupBytes?: number;
  readonly files?: FileOps;
}

const LOW_WATER_MAX_AGE_MS = 100;
const RETENTION_EVERY_MS = 1_000;
const TAKE_OVERS = 10;
const OVERTAKEN = new Error("another writer has begun the segment");

/**
 * The writing end of the embedded log; one per folder. A lock tells a second one so in good time; what keeps them apart
 * for certain is the fence (folder.ts): a writer whose segment was renamed acknowledges nothing more.
 *
 * Group commit: appends that arrive while a group is being written are staged, then written and synced together as
 * one frame. All partitions share one file, so that a group costs one sync. A frame is begun only when the one
 * before it is durable; recovery and readers rely on that.
 */
export class EmbeddedLogWriter implements ChangeStreamWriter {
  readonly name: string;
  private readonly partitions: readonly string[];
  private readonly files: FileOps;
  private readonly folder: string;
  private readonly segmentBytes: number;
  private readonly lock: ProcessLock;
  private readonly segments: SegmentSummary[];
  private file: OpenFile | undefined;
  /** The active segment's name, and the file it was given to. */
  private path = "";
  private inode: number | undefined;
  private marker: Buffer = Buffer.alloc(MARKER_BYTES);
  /** Durable bytes of the active segment's file. */
  private end = 0;
  /** First free position per partition. */
  private next: readonly number[];
  private readonly groupBytes: number;
  private filling: AppendGroup;
  /** Groups that are free. */
  private readonly spare: AppendGroup[] = [];
  private readonly queue: PendingAppend[] = [];
  private committing: Promise<void> | undefined;
  private failure: TributaryError | undefined;
  private closed = false;
  private doneBytes = 0;
  private doneBytesAt = Number.NEGATIVE_INFINITY;
  private refreshing: Promise<void> | undefined;
  private trimming: Promise<number> | undefined;
  private readonly retentionTimer: NodeJS.Timeout;

  /**
   * Takes the lock, fences who wrote before, recovers, begins a new segment.
   * Errors: TRB-STREAM-LOCKED, TRB-STREAM-CLOSED, TRB-STREAM-FENCED, TRB-STREAM-CORRUPT, TRB-CONFIG, TRB-BUS-STREAM-DOWN.
   */
  static async open(options: EmbeddedLogOptions): Promise<EmbeddedLogWriter> {
    const files = options.files ?? nodeFiles;
    await ensureFolder(files, options.folder);
    const lock = await acquireLock(files, options.folder, "writer");
    let writer: EmbeddedLogWriter | undefined;
    try {
      if ((await files.stat(closedPath(options.folder))) !== undefined) {
        throw new TributaryError("TRB-STREAM-CLOSED");
      }
      const identity = await openIdentity(files, options.folder, options.partitions);
      for (let tries = 1; ; tries++) {
        const recovered = await recover(files, options.folder, identity);
        if (recovered !== undefined) {
          writer = new EmbeddedLogWriter(options, files, lock, identity, recovered);
          const number = (recovered.segments.at(-1)?.number ?? 0) + 1;
          if (await writer.beginSegment(number, recovered.bytes)) break;
          clearInterval(writer.retentionTimer);
        }
        // Another writer, or one that starts as we do, has gone on meanwhile: read what it has added.
        if (tries === TAKE_OVERS) throw new TributaryError("TRB-STREAM-FENCED");
      }
      await writer.refreshDoneBytes();
      return writer;
    } catch (error) {
      if (writer === undefined) await lock.release().catch(() => undefined);
      else await writer.close();
      throw streamDown("the log cannot be opened", error);
    }
  }

  private constructor(
    options: EmbeddedLogOptions,
    files: FileOps,
    lock: ProcessLock,
    identity: StreamIdentity,
    recovered: Recovered,
  ) {
    this.name = identity.name;
    this.partitions = identity.partitions;
    this.files = files;
    this.folder = options.folder;
    this.segmentBytes = options.segmentBytes;
    this.lock = lock;
    this.segments = recovered.segments;
    this.next = recovered.next;
    this.groupBytes = options.groupBytes ?? 8 * 1024 * 1024;
    this.filling = this.freeGroup();
    this.retentionTimer = setInterval(() => {
      // A failed round harms nothing; the next one tries again.
      this.trim().catch(() => undefined);
    }, RETENTION_EVERY_MS);
    this.retentionTimer.unref();
  }

  append(events: OutgoingEvents): Promise<Appended> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    if (this.closed) {
      return Promise.reject(new TributaryError("TRB-BUS-STREAM-DOWN", "the stream is closed"));
    }
    const { count, slots } = events;
    const { partitions: names } = this;
    const partitions = new Uint16Array(count);
    if (count === 0) return Promise.resolve({ names, partitions, positions: [] });
    for (let i = 0; i < count; i++) partitions[i] = rangeOfSlot(slots[i]!, names.length);
    return new Promise((resolve, reject) => {
      const acknowledged = (positions: readonly string[]) => resolve({ names, partitions, positions });
      const append = { events, partitions, receivedAt: Date.now(), resolve: acknowledged, reject };
      // In order: once one append waits for room, those after it wait behind it.
      if (this.queue.length > 0 || !this.filling.add(append)) this.queue.push(append);
      this.committing ??= this.commitGroups();
    });
  }

  private async commitGroups(): Promise<void> {
    for (;;) {
      // One turn of the event loop, so that those just acknowledged can join the next group.
      await new Promise(setImmediate);
      this.fillFromQueue();
      if (this.filling.isEmpty) break;
      const group = this.filling;
      this.filling = this.freeGroup();
      const first = this.next;
      try {
        await this.commit(group);
        group.acknowledge(first);
      } catch (error) {
        group.reject(error);
      }
      group.clear();
      if (group.capacity === this.groupBytes) this.spare.push(group);
    }
    this.committing = undefined;
  }

  private freeGroup(): AppendGroup {
    return this.spare.pop() ?? new AppendGroup(this.partitions.length, this.groupBytes);
  }

  private fillFromQueue(): void {
    while (this.queue.length > 0) {
      const append = this.queue[0]!;
      if (!this.filling.add(append)) {
        if (!this.filling.isEmpty) return;
        const bytes = AppendGroup.bytesFor(this.partitions.length, append.events);
        if (bytes > MAX_FRAME_BYTES) {
          append.reject(
            new TributaryError("TRB-REQ-TOO-LARGE", `append: expected at most ${MAX_FRAME_BYTES} bytes`),
          );
          this.queue.shift();
          continue;
        }
        // Larger than a group: one of its own; the ordinary one stays for the next.
        this.spare.push(this.filling);
        this.filling = new AppendGroup(this.partitions.length, bytes);
        assert(this.filling.add(append), "an append fits a group made for it");
        this.queue.shift();
        return;
      }
      this.queue.shift();
    }
  }

  /** Writes one group; when it resolves the group is durable and its positions are given away. */
  private async commit(group: AppendGroup): Promise<void> {
    if (this.failure !== undefined) throw this.failure;
    let frame = group.seal(this.marker, this.next);
    if (
      this.end > segmentHeaderBytes(this.partitions.length) &&
      this.end + frame.length > this.segmentBytes
    ) {
      await this.roll();
      frame = group.seal(this.marker, this.next);
    }
    const file = this.file!;
    try {
      await writeFully(file, frame, this.end);
    } catch (cause) {
      // A frame that is not whole is invisible to readers, so its positions may be given again once it is cut off.
      try {
        await file.truncate(this.end);
      } catch (error) {
        throw this.fail("a failed write could not be undone", error);
      }
      throw new TributaryError("TRB-BUS-STREAM-DOWN", "the log could not be written", { cause });
    }
    try {
      await file.dataSync();
    } catch (cause) {
      // The system may have dropped the pages it could not write and would report success on the next try; what is
      // on disk is unknown until the log is read again. So no further append can be promised by this writer.
      throw this.fail("the log could not be synced; it has to be opened again", cause);
    }
    await this.assertHeld();
    this.end += frame.length;
    this.next = group.nextAfter(this.next);
  }

  /**
   * Passes while the active segment has its name: then whoever takes over later reads all that was written before.
   * Errors: TRB-STREAM-FENCED.
   */
  private async assertHeld(): Promise<void> {
    let inode: number | undefined;
    try {
      inode = (await this.files.stat(this.path))?.inode;
    } catch (cause) {
      throw this.fail("whether the log is still ours could not be found out", cause);
    }
    if (inode === undefined || inode !== this.inode) throw this.fenced();
  }

  private fenced(): TributaryError {
    this.failure = new TributaryError("TRB-STREAM-FENCED");
    return this.failure;
  }

  private async roll(): Promise<void> {
    const active = this.segments.at(-1)!;
    try {
      if (!(await this.beginSegment(active.number + 1, this.head()))) throw this.fenced();
    } catch (cause) {
      if (this.failure !== undefined) throw this.failure;
      // Once the new segment's name is there, readers take the old one for finished: appending to it would lose
      // events. If that cannot be ruled out, neither segment can be used.
      const path = join(logFolder(this.folder), segmentName(active.number + 1));
      const absent = await this.files.stat(path).then(
        (found) => found === undefined,
        () => false,
      );
      if (!absent) throw this.fail("a new segment could not be begun", cause);
      throw new TributaryError("TRB-BUS-STREAM-DOWN", "a new segment could not be begun", { cause });
    }
    this.trim().catch(() => undefined);
  }

  /** False when another writer was faster, or has kept the segment from appearing. */
  private async beginSegment(number: number, base: number): Promise<boolean> {
    // The segment appears under its name only with its header durable, so it never has a torn header.
    const header = { number, base, marker: randomBytes(MARKER_BYTES), first: this.next };
    const path = join(logFolder(this.folder), segmentName(number));
    try {
      // Fenced before this check: told here. After it: the fence has removed the temporary file, or the new segment
      // is there already and is fenced itself.
      const ready = async () => {
        if (this.file !== undefined) await this.assertHeld();
        else if (!(await endsBefore(this.files, this.folder, number))) throw OVERTAKEN;
      };
      const outcome = await createDurably(this.files, path, encodeSegmentHeader(header), undefined, ready);
      if (outcome === "exists") return false;
    } catch (error) {
      if (error === OVERTAKEN || isAbsent(error)) return false;
      throw error;
    }
    let file: OpenFile;
    try {
      file = await this.files.open(path, "write");
    } catch (error) {
      if (isAbsent(error)) return false;
      throw error;
    }
    const inode = (await this.files.stat(path))?.inode;
    await this.file?.close().catch(() => undefined); // all of it is durable
    this.file = file;
    this.path = path;
    this.inode = inode;
    this.marker = header.marker;
    this.end = segmentHeaderBytes(this.partitions.length);
    this.segments.push({ number, base, first: this.next });
    return true;
  }

  /** Frame bytes of the whole log. */
  private head(): number {
    return this.segments.at(-1)!.base + this.end - segmentHeaderBytes(this.partitions.length);
  }

  private fail(message: string, cause: unknown): TributaryError {
    this.failure = new TributaryError("TRB-BUS-STREAM-DOWN", message, { cause });
    return this.failure;
  }

  /** Bytes that no registered consumer is done with; with none registered, the whole log. At most ~100 ms old. */
  backlogBytes(): number {
    if (performance.now() - this.doneBytesAt > LOW_WATER_MAX_AGE_MS && !this.closed) {
      // An unreadable record leaves the backlog as it was: producers are held back rather than let run ahead.
      this.refreshing ??= this.refreshDoneBytes()
        .catch(() => undefined)
        .finally(() => {
          this.refreshing = undefined;
        });
    }
    return Math.max(0, this.head() - this.doneBytes);
  }

  private async refreshDoneBytes(): Promise<void> {
    const records = await readAllLowWater(this.files, this.folder, this.partitions);
    // What was forgotten before a consumer registered is not part of its backlog.
    const oldest = this.segments[0]!.base;
    const slowest = records.length === 0 ? oldest : Math.min(...records.map((record) => record.bytes));
    this.doneBytes = Math.max(oldest, slowest);
    this.doneBytesAt = performance.now();
  }

  /**
   * Retention: deletes whole segments, oldest first, in which every event is done by all registered consumers; never
   * the active one, and nothing that holds events while no consumer is registered. Resolves to the number deleted.
   */
  trim(): Promise<number> {
    this.trimming ??= this.trimSegments().finally(() => {
      this.trimming = undefined;
    });
    return this.trimming;
  }

  private async trimSegments(): Promise<number> {
    let deleted = 0;
    while (this.segments.length > 1 && !this.closed && this.failure === undefined) {
      const [oldest, following] = this.segments as [SegmentSummary, SegmentSummary];
      const isEmpty = oldest.first.every((position, p) => position === following.first[p]);
      if (!isEmpty) {
        // Read anew for each segment: a consumer that registers meanwhile loses at most the oldest, never a later one.
        const records = await readAllLowWater(this.files, this.folder, this.partitions);
        const done = (record: { done: readonly number[] }) =>
          following.first.every((position, p) => position - 1 <= record.done[p]!);
        if (records.length === 0 || !records.every(done)) break;
        // The records must not fall back to older ones after a power loss, when the segment is gone.
        await this.files.syncFolder(consumersFolder(this.folder));
      }
      const path = await segmentPath(this.files, this.folder, oldest.number);
      if (path !== undefined) await this.files.unlink(path);
      // In order also on disk: a segment that came back after a power loss would leave a hole behind it.
      await this.files.syncFolder(logFolder(this.folder));
      this.segments.shift();
      deleted++;
    }
    await this.refreshDoneBytes();
    return deleted;
  }

  /** Commits what was appended, then releases the folder. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.retentionTimer);
    await this.committing;
    await this.trimming?.catch(() => undefined);
    await this.refreshing;
    await this.file?.close().catch(() => undefined); // all that was acknowledged is durable
    await this.lock.release().catch(() => undefined); // the lock of a process that ends is stale anyway
  }
}
