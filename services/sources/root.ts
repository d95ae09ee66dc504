import { TributaryError } from "../base/errors.js";

/** A file as it was listed. */
export interface FoundFile {
  /** Below its root, with / between names. */
  readonly path: string;
  readonly bytes: number;
  /** Another one once the file has other contents. */
  readonly identity: string;
}

/** A place where exports may lie. What is there is others'; nothing is ever written. */
export interface SourceRoot {
  readonly name: string;
  /** Whether files are read where they lie, so that others may change them meanwhile; else they are copies. */
  readonly inPlace: boolean;
  /**
   * The files at or below `path`, in the order of their paths' bytes; none where nothing is. Names that begin with "."
   * or "_" are notes of writers to themselves, and left out, unless `path` itself names them.
   * Errors: TRB-SOURCE-LINK, TRB-SOURCE-LAKE, TRB-SOURCE-UNREADABLE; TRB-SOURCE-FORMAT when a Delta table lies deeper.
   */
  list(path: string): Promise<FoundFile[]>;
  /** Whether `list` finds anything. */
  holds(path: string): Promise<boolean>;
  /**
   * Runs `use` with local paths of the files, in their order, whose contents are those that were listed when `use`
   * begins, and when it has ended. Errors: as `list`; TRB-SOURCE-CHANGED, TRB-SOURCE-SCRATCH; those of `use`.
   */
  withLocal<T>(files: readonly FoundFile[], use: (paths: readonly string[]) => Promise<T>): Promise<T>;
}

/** Of names below the path that is listed. Partitions of a column such as `_day` are `_day=…`. */
export const isHidden = (name: string): boolean =>
  name.startsWith(".") || (name.startsWith("_") && !name.includes("="));

/** The order of UTF-8 bytes, in which buckets list: JavaScript would compare UTF-16 units. */
export const byPath = (a: { readonly path: string }, b: { readonly path: string }): number =>
  Buffer.compare(Buffer.from(a.path), Buffer.from(b.path));

/** What messages call a place: the names that the caller knows, and no control characters. */
export const shown = (root: string, path: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what a name must not bring into a log
  (path === "" ? root : `${root}/${path}`).replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, "?");

export const changed = (root: string, path: string, what = "it has changed since it was listed") =>
  new TributaryError("TRB-SOURCE-CHANGED", `${shown(root, path)}: ${what}`);

/** The folder of a Delta table's log. */
export const DELTA_LOG = "_delta_log";

export const tableBelow = (root: string, path: string) =>
  new TributaryError(
    "TRB-SOURCE-FORMAT",
    `${shown(root, path)}: it is a Delta table, whose files are not its rows: expected it to be a source of its own`,
  );

export const insideLake = (root: string, path: string) =>
  new TributaryError(
    "TRB-SOURCE-LAKE",
    `${shown(root, path)}: expected a place apart from the lake's own, not inside it and not around it`,
  );
