import type { SlotRange } from "../base/slots.js";
import type { Partition } from "../stream/change-stream.js";
import { partsOf, type Track } from "../table/progress.js";
import { normalized, type Slots } from "../table/slot-ranges.js";
import type { Crew } from "./crew.js";

/**
 * Along which tracks this worker moves tables. A table is moved along each by one worker at a time as far as anybody
 * can tell; should two ever do it, the commits' compare-and-set decides.
 */
export interface Ours {
  /** Names of tables are those of `tributary table ls`. */
  has(table: string, track: Track): boolean;
  /** The slots of the partitions that are held here; undefined for all. */
  readonly slots: Slots | undefined;
}

/** Of one process that has everything to itself. */
export const EVERYTHING: Ours = { has: () => true, slots: undefined };

/** The partitions of one stream that this worker holds now, and what nobody holds of the tables that it tends. */
export class Holdings implements Ours {
  private readonly partitions = new Map<string, SlotRange>();
  /** How often each was assigned: one may come back while it is still being handed over. */
  private readonly terms = new Map<string, number>();
  private ranges: Slots | undefined;

  constructor(
    private readonly stream: string,
    private readonly crew: Crew,
  ) {}

  assigned(partitions: readonly Partition[]): void {
    for (const { name, slots } of partitions) {
      this.partitions.set(name, slots);
      this.terms.set(name, (this.terms.get(name) ?? 0) + 1);
    }
    this.ranges = undefined;
  }

  /** What is being handed over, to be told when that has ended: returns those that have not come back meanwhile. */
  leaving(names: readonly string[]): () => readonly string[] {
    const terms = names.map((name) => this.terms.get(name));
    return () => names.filter((name, i) => this.terms.get(name) === terms[i]);
  }

  left(names: readonly string[]): void {
    for (const name of names) this.partitions.delete(name);
    this.ranges = undefined;
  }

  get names(): readonly string[] {
    return [...this.partitions.keys()].sort();
  }

  get slots(): Slots | undefined {
    if (this.partitions.size === 0) return undefined;
    this.ranges ??= normalized(this.partitions.values());
    return this.ranges;
  }

  has(table: string, track: Track): boolean {
    const { stream, partition } = partsOf(track);
    if (stream === this.stream && this.partitions.has(partition)) return true;
    return this.crew.tends(table) && this.crew.isFree(track);
  }
}
