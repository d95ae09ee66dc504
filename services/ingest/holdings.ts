import type { SlotRange } from "../base/slots.js";
import type { Partition } from "../stream/change-stream.js";
import { partsOf, type Track } from "../table/progress.js";

/**
 * Along which tracks this worker moves tables. A table is moved along each by one worker at a time as far as anybody
 * can tell; should two ever do it, the commits' compare-and-set decides.
 */
export interface Ours {
  /** Names of tables are those of `tributary table ls`. */
  has(table: string, track: Track): boolean;
}

/** Of one process that has everything to itself. */
export const EVERYTHING: Ours = { has: () => true };

/** The partitions of one stream that this worker holds now; everything else is for `others` to say. */
export class Holdings implements Ours {
  private readonly partitions = new Map<string, SlotRange>();

  constructor(
    private readonly stream: string,
    private readonly others: Ours,
  ) {}

  assigned(partitions: readonly Partition[]): void {
    for (const { name, slots } of partitions) this.partitions.set(name, slots);
  }

  left(names: Iterable<string>): void {
    for (const name of names) this.partitions.delete(name);
  }

  get names(): readonly string[] {
    return [...this.partitions.keys()].sort();
  }

  holds(partition: string): boolean {
    return this.partitions.has(partition);
  }

  has(table: string, track: Track): boolean {
    const { stream, partition } = partsOf(track);
    return (stream === this.stream && this.partitions.has(partition)) || this.others.has(table, track);
  }
}
