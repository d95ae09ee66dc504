import type { Digest, DigestColumn } from "../chunks/row-digests.js";
import { digestsOf } from "./digests.js";

/**
 * What has become of the entities of a job in a table: what stands of each, beside what the job's rows in raw, and what
 * others have sent since, say has to stand.
 *
 * | word        | the table                                                                                |
 * |-------------|------------------------------------------------------------------------------------------|
 * | winning     | shows the job's row                                                                      |
 * | overtaken   | shows, or hides, a newer event, which is in raw                                           |
 * | deleted     | has a delete that wins, which is in raw                                                   |
 * | hidden      | has the job's row as one that the model filters out                                       |
 * | setAside    | has nothing, as the model could not digest it: see dead letters                           |
 * | missing     | has nothing, and should                                                                  |
 * | stale       | has something older                                                                       |
 * | wrong       | shows what it should not, or twice                                                        |
 * | unexplained | has something newer, of which raw knows nothing                                            |
 */
export const STANDINGS = [
  "winning",
  "overtaken",
  "deleted",
  "hidden",
  "setAside",
  "missing",
  "stale",
  "wrong",
  "unexplained",
] as const;
export type Standing = (typeof STANDINGS)[number];
export const FAULTS: readonly Standing[] = ["missing", "stale", "wrong", "unexplained"];

export interface RefinedTenant {
  readonly entities: Record<Standing, number>;
  /** Digests of what is winning, by column: made of raw's rows, and found in the table. */
  readonly made: Readonly<Record<string, Digest>>;
  readonly found: Readonly<Record<string, Digest>>;
  /** Columns in which rows differ, with the number of these. */
  readonly differing: Readonly<Record<string, number>>;
}

export interface DifferingKey {
  readonly tenant: string;
  readonly id: string;
  /** A standing that should not be, or the names of columns that differ. */
  readonly why: string;
}

/** What is found of a tenant, part by part. Digests are sums: they add up. */
export class Tally {
  readonly entities = Object.fromEntries(STANDINGS.map((one) => [one, 0])) as Record<Standing, number>;
  private readonly made: bigint[];
  private readonly found: bigint[];
  private readonly differing: number[];

  constructor(private readonly columns: readonly DigestColumn[]) {
    this.made = columns.map(() => 0n);
    this.found = columns.map(() => 0n);
    this.differing = columns.map(() => 0);
  }

  /** Rows that the table has as they were made: sums of hashes, by column. */
  same(sums: readonly bigint[]): void {
    for (const [at, sum] of sums.entries()) {
      this.made[at]! += sum;
      this.found[at]! += sum;
    }
  }

  /** Of rows that were among the same: what the table has in their place, by column. */
  differ(at: number, made: bigint, found: bigint, rows: number): void {
    this.found[at]! += found - made;
    this.differing[at]! += rows;
  }

  get told(): RefinedTenant {
    const { columns, entities, made, found, differing } = this;
    const counts = columns.map(({ name }, at) => [name, differing[at]!] as const);
    return {
      entities,
      made: digestsOf(columns, made),
      found: digestsOf(columns, found),
      differing: Object.fromEntries(counts.filter(([, rows]) => rows > 0)),
    };
  }
}
