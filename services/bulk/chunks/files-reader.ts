import type { DuckDBConnection } from "@duckdb/node-api";
import type { Batch } from "../../sources/batch.js";
import type { Reject } from "../../sources/formats.js";
import type { HeldFile } from "../../sources/held-file.js";
import { SourceReader, START } from "../../sources/reader.js";
import type { Mark } from "../../sources/splitter.js";
import type { FileReject, FileToRead, OpenFiles } from "./chunk-protocol.js";
import type { SourcePlace } from "./row-events.js";

/** A batch of one of several files. */
export interface FileBatch extends Batch {
  readonly of: FileToRead;
  readonly rejects: readonly FileReject[];
  readonly sift: (() => Promise<readonly FileReject[]>) | undefined;
}

/**
 * Reads files of a source one after the other, over a connection of an engine that can reach them. It ends behind the last
 * one, or before the first one whose columns are others: what is bound to these does not fit it.
 */
export class FilesReader {
  /** Where reading goes on behind the last batch; behind a file once that has been found to have ended. */
  at: SourcePlace;
  private current: SourceReader;
  /** Bytes of the files so far, as they are listed and as they were read. */
  private readonly seen = { listed: 0, read: 0 };

  private constructor(
    private readonly connection: DuckDBConnection,
    private readonly held: readonly HeldFile[],
    private readonly files: readonly FileToRead[],
    private readonly from: Mark,
    private readonly first: SourceReader,
    private readonly getsOn: () => void,
  ) {
    this.current = first;
    this.at = { file: files[0]!.file, row: from.row };
  }

  /** `held` are the order's files, in their order. Errors: those of SourceReader. */
  static async open(
    connection: DuckDBConnection,
    held: readonly HeldFile[],
    { files, from }: Pick<OpenFiles, "files" | "from">,
    getsOn: () => void,
  ): Promise<FilesReader> {
    const first = await SourceReader.open(connection, held[0]!, getsOn);
    return new FilesReader(connection, held, files, from, first, getsOn);
  }

  /** Of all files that it reads. */
  get columns(): SourceReader["columns"] {
    return this.first.columns;
  }

  /** Of the whole first file, where that is known without reading it. */
  get rows(): number | undefined {
    return this.first.rows;
  }

  /** `sifts`, and errors: those of SourceReader. */
  async *batches(sifts = true): AsyncGenerator<FileBatch> {
    for (const [index, of] of this.files.entries()) {
      if (index > 0) {
        const next = await SourceReader.open(this.connection, this.held[index]!, this.getsOn);
        if (JSON.stringify(next.columns) !== JSON.stringify(this.columns)) return;
        this.current = next;
      }
      const { file } = of;
      this.seen.listed += of.bytes;
      for await (const batch of this.current.batches(index === 0 ? this.from : START, sifts)) {
        this.seen.read += batch.bytes;
        this.at = { file, row: batch.next.row };
        const inFile = (rejects: readonly Reject[]) => rejects.map((reject) => ({ ...reject, file }));
        const { sift } = batch;
        yield {
          ...batch,
          of,
          rejects: inFile(batch.rejects),
          sift: sift === undefined ? undefined : async () => inFile(await sift()),
          left: batch.left + this.behind(index, batch.left),
        };
      }
      this.at = { file: file + 1, row: 0 };
    }
  }

  /** About what the files behind one of them hold, of which so much is left. */
  private behind(index: number, left: number): number {
    const { listed, read } = this.seen;
    const bytes = this.files.slice(index + 1).reduce((sum, file) => sum + file.bytes, 0);
    return listed === 0 ? bytes : (bytes * (read + left)) / listed;
  }

  /** As SourceReader's, of the last batch: a file that has been read to its end was as it was listed until then. */
  requireUnchanged(): Promise<void> {
    return this.current.requireUnchanged();
  }

  /** As SourceReader's. */
  failure(error: unknown): ReturnType<SourceReader["failure"]> {
    return this.current.failure(error);
  }
}
