import type { StreamBatch, StreamFollower } from "../change-stream.js";
import { PositionFormatter } from "../positions.js";
import type { Fetched, Fetcher } from "./fetcher.js";
import type { Window } from "./window.js";

type ReadLimit = Parameters<StreamFollower["read"]>[0];
type Limit = Pick<ReadLimit, "maxEvents" | "maxBytes">;

/** Waits until `next` has something, as the port's `read` does. `next` throws once there is nothing more to be had. */
export async function readWhenThere(
  fetcher: Fetcher,
  limit: ReadLimit,
  next: () => StreamBatch | undefined,
): Promise<StreamBatch | undefined> {
  const until = performance.now() + limit.waitMs;
  for (;;) {
    if (limit.signal?.aborted === true) return undefined;
    const batch = next();
    if (batch !== undefined) return batch;
    const left = until - performance.now();
    if (left <= 0) return undefined;
    await fetcher.wait(left, limit.signal);
  }
}

/** Hands out what was fetched in batches of the asked size: views of the answer, copied nowhere. */
export class BatchCutter {
  private current: Fetched | undefined;
  private event = 0;
  private readonly formatters: PositionFormatter[] = [];

  get isEmpty(): boolean {
    return this.current === undefined;
  }

  /** Whether there is something to cut: the fetcher's next answer, where all of the last one was handed out. */
  fill(fetcher: Fetcher): boolean {
    if (this.current !== undefined) return true;
    const fetched = fetcher.take();
    if (fetched !== undefined) this.begin(fetched);
    return fetched !== undefined;
  }

  begin(fetched: Fetched): void {
    this.current = fetched;
    this.event = 0;
  }

  /**
   * The next events that `wanted` lets pass, at least one; undefined when the answer has none left, which `finished` is
   * then told of.
   */
  cut(
    { maxEvents, maxBytes }: Limit,
    names: readonly string[],
    wanted: (fetched: Fetched, partition: number) => boolean = () => true,
    finished: (fetched: Fetched) => void = () => undefined,
  ): StreamBatch | undefined {
    const fetched = this.current;
    if (fetched === undefined) return undefined;
    const { window } = fetched;
    while (this.event < window.count && !wanted(fetched, window.partitions[this.event]!)) this.event++;
    const from = this.event;
    let bytes = 0;
    // A stretch of neighbours: where one partition is not wanted any more, the batch ends before it.
    while (this.event < window.count && this.event - from < Math.max(1, maxEvents)) {
      const i = this.event;
      const length = window.ends[i]! - window.starts[i]!;
      if (i > from && bytes + length > maxBytes) break;
      if (
        i > from &&
        window.partitions[i] !== window.partitions[i - 1] &&
        !wanted(fetched, window.partitions[i]!)
      )
        break;
      bytes += length;
      this.event++;
    }
    const batch = this.event > from ? this.batchOf(window, from, this.event, names) : undefined;
    if (this.event === window.count) {
      this.current = undefined;
      finished(fetched);
    }
    return batch;
  }

  private batchOf(window: Window, from: number, to: number, names: readonly string[]): StreamBatch {
    const positions = new Array<string>(to - from);
    for (let i = from; i < to; i++) {
      const partition = window.partitions[i]!;
      this.formatters[partition] ??= new PositionFormatter();
      positions[i - from] = this.formatters[partition].format(window.offsets[i]!);
    }
    return {
      bytes: window.bytes,
      count: to - from,
      starts: window.starts.subarray(from, to),
      ends: window.ends.subarray(from, to),
      names,
      partitions: window.partitions.subarray(from, to),
      positions,
      receivedAt: window.timestamps.subarray(from, to),
    };
  }
}
