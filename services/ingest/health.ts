import type { Logger } from "pino";
import type { Gauge } from "prom-client";
import { type TableStatus, writeWorkerStatus } from "../status/ingest-status.js";
import type { ObjectStore } from "../storage/object-store.js";

/** Readers take a status that is much older than this for that of an ingest that does not run. */
const HEARTBEAT_MS = 15_000;

type Kind = TableStatus["kind"];

/** What is not well, on its way to the lake's status object and to the metrics. */
export class Health {
  private readonly tables = new Map<string, TableStatus>();
  private readonly held = new Map<string, string[]>();
  private writing: Promise<void> | undefined;
  private changed = false;
  private beat: NodeJS.Timeout | undefined;
  /** Commands beside a running ingest have a health too, which is nobody's business. */
  private started = false;

  constructor(
    private readonly store: ObjectStore,
    /** This worker, and the models it has in force. */
    private readonly worker: { readonly name: string; readonly fingerprints: readonly string[] },
    private readonly log: Pick<Logger, "warn">,
    private readonly quarantined: Gauge<"kind" | "table">,
    private readonly parkedBytes: Gauge<"entity_type">,
  ) {}

  /** Writes once and then now and then, so that readers can tell a quiet ingest from one that is gone. */
  start(): void {
    this.started = true;
    this.write();
    this.beat = setInterval(() => this.write(), HEARTBEAT_MS).unref();
  }

  /** `since` is when the table came to this state; a further failed try does not change it. */
  set(status: Omit<TableStatus, "since">): void {
    const key = keyOf(status.kind, status.name);
    const before = this.tables.get(key);
    const since = before?.state === status.state ? before.since : new Date().toISOString();
    this.tables.set(key, { ...status, since });
    if (status.state === "quarantined") this.quarantined.set({ kind: status.kind, table: status.name }, 1);
    else this.quarantined.remove({ kind: status.kind, table: status.name });
    if (status.kind === "raw") this.parkedBytes.set({ entity_type: status.name }, status.parkedBytes);
    this.write();
  }

  get(kind: Kind, name: string): TableStatus | undefined {
    return this.tables.get(keyOf(kind, name));
  }

  /** Which partitions of a stream are in this worker's hands. */
  holds(stream: string, partitions: readonly string[]): void {
    this.held.set(stream, [...partitions]);
    this.write();
  }

  /** The table is well. */
  clear(kind: Kind, name: string): void {
    if (!this.tables.delete(keyOf(kind, name))) return;
    this.quarantined.remove({ kind, table: name });
    if (kind === "raw") this.parkedBytes.remove({ entity_type: name });
    this.write();
  }

  /** One write at a time; what changes meanwhile is in the next. A write that fails is made up for by the next beat. */
  private write(): void {
    if (!this.started) return;
    this.changed = true;
    this.writing ??= this.writeAll().finally(() => {
      this.writing = undefined;
    });
  }

  private async writeAll(): Promise<void> {
    while (this.changed) {
      this.changed = false;
      const tables = [...this.tables.values()];
      try {
        await writeWorkerStatus(this.store, this.worker.name, {
          writtenAt: new Date().toISOString(),
          tables,
          fingerprints: [...this.worker.fingerprints],
          holds: Object.fromEntries(this.held),
        });
      } catch (error) {
        this.log.warn({ err: error }, "the status of ingest was not written");
      }
    }
  }

  /** Resolves when all that was set is written. */
  async settled(): Promise<void> {
    await this.writing;
  }

  async close(): Promise<void> {
    clearInterval(this.beat);
    await this.writing;
  }
}

const keyOf = (kind: Kind, name: string): string => `${kind} ${name}`;
