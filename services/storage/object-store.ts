/**
 * The object-store port. Keys are relative, "/"-separated, without "." or ".." segments.
 *
 * Ordering. None between keys. A `put` or `putIfAbsent` that has resolved is seen by every later `get` and `list`.
 * Durability. A resolved put survives the loss of process and power, name included. What `get` and `list` show may be
 * another process's put that has not resolved yet, or never will: whoever builds on it has it confirmed first.
 * Idempotency. `putIfAbsent` has one winner for ever: a loser is told "exists" and changes nothing. An ambiguous
 * failure (the put may have happened) rejects with TRB-STORE-FAILED; the caller settles it by reading back.
 * Objects are immutable by convention: only small pointer objects are ever put twice.
 */
export interface ObjectStore {
  /** Undefined when there is no such object. */
  get(key: string): Promise<Buffer | undefined>;
  /** Bytes [start, end) of an object. Errors: TRB-STORE-FAILED when absent or shorter. */
  getRange(key: string, start: number, end: number): Promise<Buffer>;
  /** Size and age of one object, for little; undefined when there is no such object. */
  stat(key: string): Promise<ObjectInfo | undefined>;
  put(key: string, bytes: Uint8Array): Promise<void>;
  putIfAbsent(key: string, bytes: Uint8Array): Promise<"created" | "exists">;
  /** Publishes finished local files, which are consumed, under keys nobody else uses. One durability barrier for all. */
  adopt(files: readonly { readonly localPath: string; readonly key: string }[]): Promise<void>;
  /** A folder on the lake's own volume where files for `adopt` are written; nobody else's while a process uses it. */
  readonly staging: string;
  /**
   * Lends objects as local files: runs `use` with a path for each key, in their order, and returns what it does. The
   * files stay readable until `use` ends, as long as the objects are not deleted; where no object is, the path names
   * no file. Errors: TRB-STORE-FAILED, TRB-STORE-CACHE-SMALL; those of `use`.
   */
  withLocal<T>(
    keys: readonly string[],
    use: (paths: readonly string[]) => Promise<T>,
    options?: LendOptions,
  ): Promise<T>;
  /** What one lease should hold at most, in bytes: who reads more than that takes it in portions. */
  readonly leaseBytes: number;
  /** Objects below `prefix`, in key order, optionally only those after `startAfter`. */
  list(prefix: string, startAfter?: string): AsyncIterable<ObjectInfo>;
  /**
   * Resolves once objects that a `get` or `list` has shown survive the loss of power, whoever put them and however that
   * put ended. One durability barrier for all; nothing to do where all that is seen is durable.
   */
  confirm(keys: readonly string[]): Promise<void>;
  /**
   * A URL by which somebody without credentials may put these bytes, as `putIfAbsent` does, and no others, for so long.
   * Undefined where the store has none to give. Errors: TRB-STORE-FAILED.
   */
  presignPut(key: string, content: PutContent, lifeMs: number): Promise<PresignedPut | undefined>;
  /** Absent keys are fine. */
  delete(keys: readonly string[]): Promise<void>;
}

export interface LendOptions {
  /** The objects as they are now: for those that may have been put anew under the same key, which copies do not show. */
  readonly fresh?: boolean;
}

export interface PutContent {
  readonly bytes: number;
  readonly sha256: Buffer;
}

export interface PresignedPut {
  readonly url: string;
  /** To be sent with it, beside the length. */
  readonly headers: Readonly<Record<string, string>>;
}

export interface ObjectInfo {
  readonly key: string;
  readonly bytes: number;
  /** When it was put, or its file written, in ms since the epoch. */
  readonly modifiedAt: number;
}
