import { dirname, join, resolve } from "node:path";
import { errno, TributaryError } from "../base/errors.js";
import {
  createDurably,
  ensureFolder,
  type FileOps,
  isAbsent,
  nodeFiles,
  readWhole,
  replaceDurably,
} from "../base/files.js";
import { checkKey, checkPrefix } from "./keys.js";
import type { ObjectInfo, ObjectStore } from "./object-store.js";

/** Files synced or looked at together; enough to keep a disk busy. */
const PARALLEL = 16;

/** An object store in a folder: an object is a file, its key the path below the folder. */
export class FileStore implements ObjectStore {
  readonly staging: string;
  readonly leaseBytes = Number.POSITIVE_INFINITY;
  private readonly root: string;
  private readonly files: FileOps;
  /** Folders whose names this process knows to be durable. */
  private readonly folders = new Map<string, Promise<void>>();

  /** `staging` must be on the same volume as `folder`, and not below it. Errors: TRB-STORE-FAILED. */
  static async open(options: {
    readonly folder: string;
    readonly staging: string;
    readonly files?: FileOps;
  }): Promise<FileStore> {
    const files = options.files ?? nodeFiles;
    await guard("open", async () => {
      await ensureFolder(files, options.folder);
      await ensureFolder(files, options.staging);
    });
    return new FileStore(files, resolve(options.folder), resolve(options.staging));
  }

  private constructor(files: FileOps, root: string, staging: string) {
    this.files = files;
    this.root = root;
    this.staging = staging;
  }

  get(key: string): Promise<Buffer | undefined> {
    return guard("get", () => readWhole(this.files, this.path(key)), { value: undefined });
  }

  getRange(key: string, start: number, end: number): Promise<Buffer> {
    return guard("get range", async () => {
      const file = await this.files.open(this.path(key), "read");
      try {
        const bytes = Buffer.allocUnsafeSlow(end - start);
        if ((await file.read(bytes, start)) < bytes.length) {
          throw new TributaryError("TRB-STORE-FAILED", "get range: the object is shorter than the range");
        }
        return bytes;
      } finally {
        await file.close();
      }
    });
  }

  stat(key: string): Promise<ObjectInfo | undefined> {
    const absent = { value: undefined };
    return guard<ObjectInfo | undefined>(
      "stat",
      async () => {
        const found = await this.files.stat(this.path(key));
        if (found === undefined || found.isFolder) return undefined;
        return { key, bytes: found.bytes, modifiedAt: found.modifiedAt };
      },
      absent,
    );
  }

  put(key: string, bytes: Uint8Array): Promise<void> {
    return guard("put", async () => {
      const path = this.path(key);
      await this.inFolders([dirname(path)], () => replaceDurably(this.files, path, bytes, this.staging));
    });
  }

  putIfAbsent(key: string, bytes: Uint8Array): Promise<"created" | "exists"> {
    return guard("put if absent", async () => {
      const path = this.path(key);
      return this.inFolders([dirname(path)], () => createDurably(this.files, path, bytes, this.staging));
    });
  }

  adopt(files: readonly { readonly localPath: string; readonly key: string }[]): Promise<void> {
    return guard("adopt", async () => {
      const moves = files.map(({ localPath, key }) => ({ localPath, path: this.path(key) }));
      const folders = [...new Set(moves.map(({ path }) => dirname(path)))];
      // Contents first: a name must never be durable before what it names.
      await forEach(moves, async ({ localPath }) => {
        // Data files are never changed; this keeps slips of others, a query engine's say, from doing it.
        await this.files.setReadOnly(localPath);
        await this.sync(localPath);
      });
      await this.inFolders(folders, async () => {
        await forEach(moves, ({ localPath, path }) => this.files.rename(localPath, path));
        await forEach(folders, (folder) => this.files.syncFolder(folder));
      });
    });
  }

  private async sync(path: string): Promise<void> {
    const file = await this.files.open(path, "read");
    try {
      await file.dataSync();
    } finally {
      await file.close();
    }
  }

  /** The objects are local files already. */
  async withLocal<T>(keys: readonly string[], use: (paths: readonly string[]) => Promise<T>): Promise<T> {
    return use(keys.map((key) => this.path(key)));
  }

  async *list(prefix: string, startAfter = ""): AsyncGenerator<ObjectInfo> {
    checkPrefix(prefix);
    const folderKey = prefix.slice(0, prefix.lastIndexOf("/") + 1);
    yield* this.listFolder(folderKey, prefix, startAfter);
  }

  /** `folderKey` is "" or ends in "/". */
  private async *listFolder(
    folderKey: string,
    prefix: string,
    startAfter: string,
  ): AsyncGenerator<ObjectInfo> {
    const entries = await guard("list", () => this.files.list(join(this.root, folderKey)), { value: [] });
    const keys: string[] = [];
    for (const { name, isFolder } of entries) {
      const key = folderKey + (isFolder ? `${name}/` : name);
      if (!key.startsWith(prefix) && !(isFolder && prefix.startsWith(key))) continue;
      // All keys below a folder start with its key; they come after `startAfter` if that does or lies among them.
      if (key > startAfter || (isFolder && startAfter.startsWith(key))) keys.push(key);
    }
    // A folder stands where its "/" puts it among the files, which gives the order of whole keys.
    keys.sort();
    for (let i = 0; i < keys.length; ) {
      if (keys[i]!.endsWith("/")) {
        yield* this.listFolder(keys[i++]!, prefix, startAfter);
        continue;
      }
      let end = i;
      while (end < keys.length && end < i + PARALLEL && !keys[end]!.endsWith("/")) end++;
      const stretch = keys.slice(i, end);
      const found = await guard("list", () =>
        Promise.all(stretch.map((key) => this.files.stat(join(this.root, key)))),
      );
      for (const [j, key] of stretch.entries()) {
        const file = found[j];
        if (file !== undefined) yield { key, bytes: file.bytes, modifiedAt: file.modifiedAt }; // deleted meanwhile: not there
      }
      i = end;
    }
  }

  confirm(keys: readonly string[]): Promise<void> {
    // Contents are synced before they get a name, so the names are all that may be missing.
    return guard("confirm", () =>
      forEach([...new Set(keys.map((key) => dirname(this.path(key))))], (folder) =>
        this.files.syncFolder(folder),
      ),
    );
  }

  /** There is nobody to put anything past us. */
  async presignPut(): Promise<undefined> {}

  delete(keys: readonly string[]): Promise<void> {
    return guard("delete", async () => {
      const paths = keys.map((key) => this.path(key));
      const folders = new Set<string>();
      await forEach(paths, async (path) => {
        try {
          await this.files.unlink(path);
          folders.add(dirname(path));
        } catch (error) {
          if (!isAbsent(error)) throw error;
        }
      });
      await forEach([...folders], (folder) => this.files.syncFolder(folder));
    });
  }

  private path(key: string): string {
    checkKey(key);
    return join(this.root, key);
  }

  /** Runs `step` with the folders made. */
  private async inFolders<T>(folders: readonly string[], step: () => Promise<T>): Promise<T> {
    await forEach(folders, (folder) => this.ensureFolder(folder));
    try {
      return await step();
    } catch (error) {
      // Somebody removed a folder behind our back: forget what we know, so that the next try makes it again.
      if (isAbsent(error)) this.folders.clear();
      throw error;
    }
  }

  private ensureFolder(folder: string): Promise<void> {
    let ensured = this.folders.get(folder);
    if (ensured === undefined) {
      const above = folder === this.root ? Promise.resolve() : this.ensureFolder(dirname(folder));
      ensured = above.then(() => ensureFolder(this.files, folder));
      this.folders.set(folder, ensured);
      ensured.catch(() => this.folders.delete(folder));
    }
    return ensured;
  }
}

/** Runs `step`; what the file system rejects becomes TRB-STORE-FAILED, or `ifAbsent` for what is not there. */
async function guard<T>(what: string, step: () => Promise<T>, ifAbsent?: { value: T }): Promise<T> {
  try {
    return await step();
  } catch (error) {
    if (error instanceof TributaryError) throw error;
    if (ifAbsent !== undefined && (isAbsent(error) || errno(error) === "EISDIR")) return ifAbsent.value;
    throw new TributaryError("TRB-STORE-FAILED", `${what}: ${errno(error) ?? "failed"}`, { cause: error });
  }
}

/** Runs `step` for all, PARALLEL at a time; rejects with the first error once those running have ended. */
async function forEach<T>(items: readonly T[], step: (item: T) => Promise<unknown>): Promise<void> {
  for (let i = 0; i < items.length; i += PARALLEL) {
    const outcomes = await Promise.allSettled(items.slice(i, i + PARALLEL).map(step));
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  }
}
