import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { DuckDBConnection } from "@duckdb/node-api";
import { literal } from "../../base/duckdb.js";
import { copyMade } from "../chunks/row-digests.js";

/** The shift of a file's number in that of a row. */
const FILE_BITS = 32;

/** What models have made of a job's events (row-digests.ts), in files on the local disk that are gone with their use. */
export class MadeFiles {
  private written = 0;
  private readonly files = new Map<string, string[]>();

  private constructor(private readonly folder: string) {}

  static async with<T>(folder: string, use: (files: MadeFiles) => Promise<T>): Promise<T> {
    await mkdir(folder, { recursive: true });
    const own = await mkdtemp(join(folder, "made-"));
    try {
      return await use(new MadeFiles(own));
    } finally {
      await rm(own, { recursive: true, force: true });
    }
  }

  /** A path at which nothing is. */
  path(): string {
    return join(this.folder, `${this.written++}.parquet`);
  }

  /** Says that a file is one of the model's. */
  add(model: string, path: string): void {
    this.files.set(model, [...this.of(model), path]);
  }

  async write(connection: DuckDBConnection, model: string, relation: string): Promise<void> {
    const path = this.path();
    await copyMade(connection, `FROM ${relation}`, path);
    this.add(model, path);
  }

  /** Says that nothing of the model is wanted so far. */
  forget(model: string): void {
    this.files.delete(model);
  }

  of(model: string): readonly string[] {
    return this.files.get(model) ?? [];
  }
}

/** What models have made of a source. */
export interface Made {
  readonly files: MadeFiles;
  /** Those of which `files` has all of the source. What raw has of the job has to be read for the others. */
  readonly whole: ReadonlySet<string>;
}

/** SQL for the rows of some of a model's files, from the one at `first` on, each with a number `n` that no other has. */
export const numbered = (files: readonly string[], first: number): string =>
  files
    .map(
      (path, at) => `SELECT * EXCLUDE (file_row_number), file_row_number + ${firstOf(first + at)} AS n
        FROM read_parquet(${literal(path)}, hive_partitioning=false, file_row_number=true)`,
    )
    .join(" UNION ALL ");

/** The number of the first row of a file. */
export const firstOf = (file: number): string => `(${file}::BIGINT << ${FILE_BITS})`;
