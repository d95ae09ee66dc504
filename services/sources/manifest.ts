import { TributaryError } from "../base/errors.js";
import type { DeletionVectorDescriptor } from "../table/actions.js";
import type { Column } from "../table/types.js";
import { type DeltaListing, neededOf } from "./delta-log.js";
import { type Choice, type Compression, damaged, type Format, told } from "./formats.js";
import { byPath, DELTA_LOG, type FoundFile, shown } from "./root.js";
import type { Place } from "./sources.js";

/** One file of a source, as all who read it must find it. */
export interface SourceFile extends FoundFile {
  readonly compression: Compression;
  /** Of a Delta table's files. */
  readonly delta?: {
    readonly partition: Readonly<Record<string, string | null>>;
    readonly vector: DeletionVectorDescriptor | undefined;
    readonly vectorFile: FoundFile | undefined;
  };
}

/** What a source held when it was listed: the files of a job, whose order and contents must stay. Plain JSON. */
export interface Manifest {
  /** `<root>/<path>`. */
  readonly source: string;
  readonly format: Format;
  /** In the order of their paths' bytes; each has records of its own, numbered from 0. */
  readonly files: readonly SourceFile[];
  readonly bytes: number;
  /** Of a Delta table: the version that was listed, and what its columns are. */
  readonly delta?: { readonly version: number; readonly columns: readonly Column[] };
}

/** Reads the log of a Delta table: what strangers wrote is read in a process of its own. */
export type ReadLog = (shown: string, log: ReadonlyMap<string, string>) => Promise<DeltaListing>;

/**
 * Lists a source. Errors: TRB-SOURCE-EMPTY; TRB-SOURCE-FORMAT for files of several formats or of one that cannot be
 * told, and for a Delta table that is to be read as something else: of its files some are rows that are gone; those of
 * the root and of `readLog`.
 */
export async function listSource(place: Place, choice: Choice, readLog: ReadLog): Promise<Manifest> {
  const { root, path } = place;
  const source = shown(root.name, path);
  const log = path === "" ? DELTA_LOG : `${path}/${DELTA_LOG}`;
  const isDelta = await root.holds(log);
  if (isDelta !== ((choice.format ?? (isDelta ? "delta" : undefined)) === "delta")) {
    const message = isDelta
      ? "it is a Delta table, whose files are not its rows: expected the format delta"
      : "expected a folder with a _delta_log, as the format is delta";
    throw new TributaryError("TRB-SOURCE-FORMAT", `${source}: ${message}`);
  }
  const found = await root.list(path);
  const manifest = isDelta
    ? await listTable(place, await root.list(log), found, readLog)
    : { ...listFiles(place, found, choice), source };
  if (manifest.files.length === 0) {
    throw new TributaryError("TRB-SOURCE-EMPTY", `${source}: expected files, found none`);
  }
  return manifest;
}

function listFiles({ root, path }: Place, found: readonly FoundFile[], { format }: Choice): Manifest {
  const files = found.map((file) => {
    const { format: named, compression } = told(file.path);
    const one = format ?? named;
    const name = shown(root.name, file.path);
    if (one === undefined) {
      const message = `${name}: its name tells no format; expected one to be chosen`;
      throw new TributaryError("TRB-SOURCE-FORMAT", message);
    }
    if (compression !== "none" && one === "parquet") {
      throw new TributaryError(
        "TRB-SOURCE-FORMAT",
        `${name}: expected Parquet that is not packed as a whole`,
      );
    }
    return { file: { ...file, compression }, format: one };
  });
  const first = files[0]?.format ?? "parquet";
  const other = files.find((file) => file.format !== first);
  if (other !== undefined) {
    const name = shown(root.name, other.file.path);
    const message = `${name}: expected one format, found ${other.format} beside ${first}`;
    throw new TributaryError("TRB-SOURCE-FORMAT", message);
  }
  return manifestOf(
    shown(root.name, path),
    first,
    files.map(({ file }) => file),
  );
}

async function listTable(
  { root, path }: Place,
  log: readonly FoundFile[],
  found: readonly FoundFile[],
  readLog: ReadLog,
): Promise<Manifest> {
  const source = shown(root.name, path);
  const nameOf = (file: FoundFile) => file.path.slice(file.path.lastIndexOf("/") + 1);
  const needed = new Set(neededOf(log.map(nameOf)));
  const files = log.filter((file) => needed.has(nameOf(file)));
  const table = await root.withLocal(files, (paths) =>
    readLog(source, new Map(files.map((file, at) => [nameOf(file), paths[at]!]))),
  );
  // What the log names is looked up among what lies there, so that no name leads anywhere else.
  const below = new Map(
    found.map((file) => [path === "" ? file.path : file.path.slice(path.length + 1), file]),
  );
  const fileAt = (name: string): FoundFile => {
    const file = below.get(name);
    if (file === undefined) throw damaged(source, "its log names a file that is not there");
    return file;
  };
  const listed = table.files.map(({ path: name, bytes, partition, vector, vectorPath }): SourceFile => {
    const file = fileAt(name);
    if (file.bytes !== bytes) throw damaged(shown(root.name, file.path), "its size is not what the log says");
    const vectorFile = vectorPath === undefined ? undefined : fileAt(vectorPath);
    return { ...file, compression: "none", delta: { partition, vector, vectorFile } };
  });
  const { version, columns } = table;
  return { ...manifestOf(source, "delta", listed.sort(byPath)), delta: { version, columns } };
}

const manifestOf = (source: string, format: Format, files: readonly SourceFile[]): Manifest => ({
  source,
  format,
  files,
  bytes: files.reduce((sum, { bytes }) => sum + bytes, 0),
});
