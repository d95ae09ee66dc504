import type { StreamApi } from "./stream-api.js";

/** Which open shard takes a slot, as of the last look; a guess that each answer of the stream corrects. */
export class ShardMap {
  private starts: readonly number[] = [];
  private ids: readonly string[] = [];
  private looking: Promise<void> | undefined;

  constructor(private readonly api: StreamApi) {}

  /** Errors: TRB-BUS-STREAM-DOWN. */
  refresh(): Promise<void> {
    this.looking ??= this.look().finally(() => {
      this.looking = undefined;
    });
    return this.looking;
  }

  private async look(): Promise<void> {
    const open = (await this.api.shards())
      .filter((shard) => shard.open)
      .sort((a, b) => a.slots.start - b.slots.start);
    this.starts = open.map(({ slots }) => slots.start);
    this.ids = open.map(({ id }) => id);
  }

  shardOf(slot: number): string {
    let low = 0;
    let high = this.starts.length;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (this.starts[middle]! <= slot) low = middle;
      else high = middle;
    }
    return this.ids[low] ?? "";
  }
}
