import { randomBytes } from "node:crypto";
import { watch } from "node:fs";
import { chmod, type FileHandle, link, mkdir, open, readdir, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { errno } from "./errors.js";

/**
 * The file-system seam: every durable operation of the log and of the file store goes through it, so that tests can
 * record the order of operations, inject faults and lose power. Errors are Node's own, with an errno code.
 */
export interface FileOps {
  /** "read" and "write" need an existing file; "create" fails with EEXIST. */
  open(path: string, how: "read" | "write" | "create"): Promise<OpenFile>;
  /** Fails with EEXIST when `to` is there: the atomic "create if absent". */
  link(from: string, to: string): Promise<void>;
  /** Replaces `to`. */
  rename(from: string, to: string): Promise<void>;
  unlink(path: string): Promise<void>;
  setReadOnly(path: string): Promise<void>;
  /** One level; fails with EEXIST or ENOENT. */
  makeFolder(path: string): Promise<void>;
  /** Names in a folder, in no order. */
  list(folder: string): Promise<readonly { readonly name: string; readonly isFolder: boolean }[]>;
  /** Undefined when there is nothing. */
  stat(path: string): Promise<FileStat | undefined>;
  /** Makes the names in a folder durable. */
  syncFolder(path: string): Promise<void>;
  /** Calls back on changes in a folder, of names or contents; may miss some. Returns the way to stop. */
  watch(folder: string, onChange: () => void): () => void;
}

export interface FileStat {
  readonly bytes: number;
  readonly isFolder: boolean;
  /** Tells the file apart from another one of the same name. */
  readonly inode: number;
  /** Last change of the contents, in ms since the epoch. */
  readonly modifiedAt: number;
}

export interface OpenFile {
  /** Bytes read; 0 at the end of the file, fewer than asked for only near it. */
  read(into: Uint8Array, at: number): Promise<number>;
  /** Bytes written; a short write is followed by an error on the next, as on a full disk. */
  write(from: Uint8Array, at: number): Promise<number>;
  truncate(bytes: number): Promise<void>;
  /** fdatasync: contents and size, all that reading back needs. */
  dataSync(): Promise<void>;
  size(): Promise<number>;
  close(): Promise<void>;
}

class NodeFile implements OpenFile {
  private readonly handle: FileHandle;

  constructor(handle: FileHandle) {
    this.handle = handle;
  }

  async read(into: Uint8Array, at: number): Promise<number> {
    let done = 0;
    while (done < into.length) {
      const { bytesRead } = await this.handle.read(into, done, into.length - done, at + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return done;
  }

  async write(from: Uint8Array, at: number): Promise<number> {
    return (await this.handle.write(from, 0, from.length, at)).bytesWritten;
  }

  truncate(bytes: number): Promise<void> {
    return this.handle.truncate(bytes);
  }

  dataSync(): Promise<void> {
    return this.handle.datasync();
  }

  async size(): Promise<number> {
    return (await this.handle.stat()).size;
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

const openFlags = { read: "r", write: "r+", create: "wx+" } as const;

/** The real file system. */
export const nodeFiles: FileOps = {
  async open(path, how) {
    return new NodeFile(await open(path, openFlags[how]));
  },
  link,
  rename,
  unlink,
  setReadOnly: (path) => chmod(path, 0o444),
  makeFolder: (path) => mkdir(path),
  async list(folder) {
    const entries = await readdir(folder, { withFileTypes: true });
    return entries.map((entry) => ({ name: entry.name, isFolder: entry.isDirectory() }));
  },
  async stat(path) {
    try {
      const found = await stat(path);
      return {
        bytes: found.size,
        isFolder: found.isDirectory(),
        inode: found.ino,
        modifiedAt: found.mtimeMs,
      };
    } catch (error) {
      if (isAbsent(error)) return undefined;
      throw error;
    }
  },
  async syncFolder(path) {
    const handle = await open(path, "r");
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  },
  watch(folder, onChange) {
    const watcher = watch(folder, { persistent: false }, onChange);
    watcher.on("error", () => watcher.close());
    return () => watcher.close();
  },
};

/** Whether an error says that a path, or a folder on the way to it, does not exist. */
export function isAbsent(error: unknown): boolean {
  const code = errno(error);
  return code === "ENOENT" || code === "ENOTDIR";
}

/** Writes all of `bytes`; a short write is tried again from where it stopped. */
export async function writeFully(file: OpenFile, bytes: Uint8Array, at: number): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    done += await file.write(done === 0 ? bytes : bytes.subarray(done), at + done);
  }
}

/** The whole content; undefined when there is no such file. */
export async function readWhole(files: FileOps, path: string): Promise<Buffer | undefined> {
  let file: OpenFile;
  try {
    file = await files.open(path, "read");
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
  try {
    // allocUnsafeSlow: what is read is kept and must not pin a shared pool.
    const bytes = Buffer.allocUnsafeSlow(await file.size());
    return bytes.subarray(0, await file.read(bytes, 0));
  } finally {
    await file.close();
  }
}

/** Makes a folder and those above it; the names are durable when it resolves. */
export async function ensureFolder(files: FileOps, path: string): Promise<void> {
  if ((await files.stat(path))?.isFolder !== true) {
    const parent = dirname(path);
    if (parent !== path) await ensureFolder(files, parent);
    try {
      await files.makeFolder(path);
    } catch (error) {
      if (errno(error) !== "EEXIST") throw error;
    }
  }
  // Also when it was there: whoever made it may have died before its own sync of the folder above.
  await syncIfAllowed(files, dirname(path));
}

/** Folders far above ours may not be readable for us; their names are not ours to make durable either. */
async function syncIfAllowed(files: FileOps, folder: string): Promise<void> {
  try {
    await files.syncFolder(folder);
  } catch (error) {
    const code = errno(error);
    if (code !== "EACCES" && code !== "EPERM" && code !== "EROFS") throw error;
  }
}

/** A new file with `bytes`, contents durable, name not yet. */
async function writeTemporary(files: FileOps, folder: string, name: string, bytes: Uint8Array) {
  const path = join(folder, `.${name}.${randomBytes(6).toString("hex")}${temporarySuffix}`);
  const file = await files.open(path, "create").catch(async (error: unknown) => {
    // An error does not say that nothing was done; nobody else's file has this name.
    await files.unlink(path).catch(() => undefined);
    throw error;
  });
  try {
    await writeFully(file, bytes, 0);
    await file.dataSync();
  } catch (error) {
    await file.close();
    await files.unlink(path).catch(() => undefined);
    throw error;
  }
  await file.close();
  return path;
}

export const temporarySuffix = ".tmp";

/**
 * Creates `path` with `bytes`, all or nothing, once for ever: of several callers one is told "created".
 * When it resolves, either way, the file that is there is durable, name included. When it rejects it may be there.
 * `staging` (default: the file's own folder) is where the temporary file is written; same volume. `ready` is awaited when
 * the temporary file is there and the name is not: what it throws keeps the name from being made.
 */
export async function createDurably(
  files: FileOps,
  path: string,
  bytes: Uint8Array,
  staging = dirname(path),
  ready: () => Promise<void> = async () => undefined,
): Promise<"created" | "exists"> {
  const temporary = await writeTemporary(files, staging, basename(path), bytes);
  try {
    await ready();
    let outcome: "created" | "exists" = "created";
    try {
      await files.link(temporary, path);
    } catch (error) {
      if (errno(error) !== "EEXIST") throw error;
      outcome = "exists";
    }
    // A loser syncs too: it will build on what it found, whose maker may have died just before this step.
    await files.syncFolder(dirname(path));
    return outcome;
  } finally {
    // A leftover temporary file harms nobody, so this is no reason to fail.
    await files.unlink(temporary).catch(() => undefined);
  }
}

/** Puts `bytes` at `path`, whatever was there: readers see the old or the new content. Durable when it resolves. */
export async function replaceDurably(
  files: FileOps,
  path: string,
  bytes: Uint8Array,
  staging = dirname(path),
): Promise<void> {
  const temporary = await writeTemporary(files, staging, basename(path), bytes);
  try {
    await files.rename(temporary, path);
  } catch (error) {
    await files.unlink(temporary).catch(() => undefined);
    throw error;
  }
  await files.syncFolder(dirname(path));
}
