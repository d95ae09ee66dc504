import { TributaryError } from "../../base/errors.js";
import { type FileOps, nodeFiles } from "../../base/files.js";
import { slotsOfRange } from "../../base/slots.js";
import type {
  ChangeStreamReader,
  Checkpoint,
  PartitionHolder,
  StreamBatch,
  StreamConsumer,
  StreamFollower,
} from "../change-stream.js";
import { checkConsumerName } from "../consumer-name.js";
import { closedError } from "../failures.js";
import { fromCheckpoint, toCheckpoint } from "./checkpoints.js";
import { EmbeddedLogConsumer } from "./consumer.js";
import { LogCursor } from "./cursor.js";
import { logFolder, openIdentity, type StreamIdentity } from "./folder.js";
import { readLowWater } from "./low-water.js";
import { FolderWatch } from "./watch.js";

/** What a look reads at once: a slice that others need not wait long for. */
const LOOK = { maxEvents: 4_096, maxBytes: 1024 * 1024, waitMs: 0 };

/** The reading end of the embedded log. Works beside the writer or in another process, also before there is one. */
export class EmbeddedLogReader implements ChangeStreamReader {
  readonly name: string;
  private readonly partitions: readonly string[];
  private readonly files: FileOps;
  private readonly folder: string;
  private readonly identity: StreamIdentity;
  private readonly watch: FolderWatch;
  private readonly consumers = new Set<EmbeddedLogConsumer>();
  private headCursor: LogCursor | undefined;
  private heading: Promise<Checkpoint> | undefined;
  private closed = false;

  /**
   * `partitions` settles the stream when no writer has been here yet; without it the stream must exist.
   * Errors: TRB-CONFIG, TRB-STREAM-CORRUPT.
   */
  static async open(options: {
    readonly folder: string;
    readonly partitions?: number;
    readonly files?: FileOps;
  }): Promise<EmbeddedLogReader> {
    const files = options.files ?? nodeFiles;
    const identity = await openIdentity(files, options.folder, options.partitions);
    return new EmbeddedLogReader(files, options.folder, identity);
  }

  private constructor(files: FileOps, folder: string, identity: StreamIdentity) {
    this.name = identity.name;
    this.partitions = identity.partitions;
    this.files = files;
    this.folder = folder;
    this.identity = identity;
    this.watch = new FolderWatch(files, logFolder(folder));
  }

  async lowWater(consumer: string): Promise<Checkpoint> {
    checkConsumerName(consumer);
    const record = await readLowWater(this.files, this.folder, consumer, this.partitions);
    return record === undefined ? new Map() : toCheckpoint(this.partitions, record.done);
  }

  head(): Promise<Checkpoint> {
    this.heading ??= this.findHead().finally(() => {
      this.heading = undefined;
    });
    return this.heading;
  }

  async retentionMs(): Promise<undefined> {
    return undefined;
  }

  private async findHead(): Promise<Checkpoint> {
    if (this.closed) throw closedError("stream reader");
    // What was trimmed since the last look may lie between: the newest segment tells as much.
    const next = await this.atHead().catch(() => this.atHead());
    return toCheckpoint(
      this.partitions,
      next.map((position) => position - 1),
    );
  }

  /** Goes on where the last look ended; one that failed leaves nothing to go on from. */
  private async atHead(): Promise<readonly number[]> {
    const cursor =
      this.headCursor ?? (await LogCursor.openNewest(this.files, this.folder, this.partitions.length));
    this.headCursor = undefined;
    try {
      const next = await cursor.skipToEnd();
      this.headCursor = cursor;
      return next;
    } finally {
      if (this.headCursor === undefined) await cursor.close();
    }
  }

  /** Its one process holds every partition. */
  async consume(consumer: string, holder?: PartitionHolder): Promise<StreamConsumer> {
    const opened = await this.opened(consumer, false);
    const { partitions } = this;
    holder?.assigned(partitions.map((name, i) => ({ name, slots: slotsOfRange(i, partitions.length) })));
    return opened;
  }

  async follow(from: Checkpoint | "oldest" | "next"): Promise<StreamFollower> {
    const following = await this.opening((onClose) => this.openFollower(from, onClose));
    return {
      read: async (limit) => {
        try {
          return await following.read(limit);
        } catch (error) {
          // What is missing was trimmed, or is damaged.
          if (await following.isOverrun().catch(() => false)) {
            throw new TributaryError("TRB-STREAM-FORGOTTEN", undefined, { cause: error });
          }
          throw error;
        }
      },
      close: () => following.close(),
    };
  }

  private async openFollower(
    from: Checkpoint | "oldest" | "next",
    onClose: () => void,
  ): Promise<EmbeddedLogConsumer> {
    const { files, folder, identity, watch } = this;
    const checkpoint = from === "next" ? await this.head() : from;
    const done = checkpoint === "oldest" ? undefined : fromCheckpoint(this.partitions, checkpoint);
    return EmbeddedLogConsumer.openAfter(files, folder, identity, done, watch, onClose);
  }

  async *waiting(consumer: string): AsyncGenerator<StreamBatch> {
    const looking = await this.opened(consumer, true);
    try {
      for (;;) {
        const batch = await looking.read(LOOK);
        if (batch === undefined) return;
        yield batch;
      }
    } finally {
      await looking.close();
    }
  }

  private opened(consumer: string, looks: boolean): Promise<EmbeddedLogConsumer> {
    checkConsumerName(consumer);
    const { files, folder, identity, watch } = this;
    return this.opening((onClose) =>
      EmbeddedLogConsumer.open(files, folder, identity, consumer, watch, onClose, looks),
    );
  }

  private async opening(
    open: (onClose: () => void) => Promise<EmbeddedLogConsumer>,
  ): Promise<EmbeddedLogConsumer> {
    if (this.closed) throw closedError("stream reader");
    const opened = await open(() => this.consumers.delete(opened));
    this.consumers.add(opened);
    return opened;
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await Promise.all([...this.consumers].map((consumer) => consumer.close()));
    this.watch.close();
    await this.heading?.catch(() => undefined);
    await this.headCursor?.close();
  }
}
