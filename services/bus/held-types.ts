import type { FastifyBaseLogger } from "fastify";
import type { IngestStatus } from "../status/ingest-status.js";

const LOOK_MS = 1_000;

/**
 * The entity types whose events cannot land and have used up the disk they may wait on, as ingest last said. Where that
 * cannot be read, nothing is held: `maxLagBytes` is the last defence.
 */
export class HeldTypes {
  private types: ReadonlySet<string> = new Set();
  private timer: NodeJS.Timeout | undefined;
  private looking: Promise<void> | undefined;
  private unreadable = false;

  constructor(
    private readonly read: () => Promise<IngestStatus | undefined>,
    private readonly log: FastifyBaseLogger,
  ) {}

  has(entityType: string): boolean {
    return this.types.has(entityType);
  }

  /** Looks now and every second from now on. Resolves after the first look. */
  async start(): Promise<void> {
    this.timer = setInterval(() => {
      this.looking ??= this.look().finally(() => {
        this.looking = undefined;
      });
    }, LOOK_MS);
    this.timer.unref();
    await this.look();
  }

  stop(): void {
    clearInterval(this.timer);
  }

  private async look(): Promise<void> {
    let status: IngestStatus | undefined;
    try {
      status = await this.read();
      this.unreadable = false;
    } catch (error) {
      if (!this.unreadable) this.log.warn({ err: error }, "cannot read how the tables are doing");
      this.unreadable = true;
    }
    const held = status?.tables.filter((table) => table.held).map(({ entityType }) => entityType) ?? [];
    for (const entityType of held) {
      if (!this.types.has(entityType)) this.log.warn({ entityType }, "events of this type are held back");
    }
    this.types = new Set(held);
  }
}
