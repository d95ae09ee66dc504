import { open, readFile, stat } from "node:fs/promises";
import { TributaryError } from "../base/errors.js";
import { isAbsent } from "../base/files.js";
import type { ObjectInfo, ObjectStore, PresignedPut } from "../storage/object-store.js";

/** Local files under keys of ours, to be read as objects: these and no others, and nothing is ever put. */
export class ListedFiles implements ObjectStore {
  readonly leaseBytes = Number.POSITIVE_INFINITY;

  constructor(private readonly paths: ReadonlyMap<string, string>) {}

  get staging(): string {
    throw readOnly();
  }

  async get(key: string): Promise<Buffer | undefined> {
    const path = this.paths.get(key);
    if (path === undefined) return undefined;
    return readFile(path).catch((error: unknown) => {
      if (isAbsent(error)) return undefined;
      throw error;
    });
  }

  async getRange(key: string, start: number, end: number): Promise<Buffer> {
    const file = await open(this.paths.get(key) ?? "", "r");
    try {
      const bytes = Buffer.alloc(end - start);
      const { bytesRead } = await file.read(bytes, 0, bytes.length, start);
      return bytes.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  }

  async stat(key: string): Promise<ObjectInfo | undefined> {
    const path = this.paths.get(key);
    if (path === undefined) return undefined;
    const { size, mtimeMs } = await stat(path);
    return { key, bytes: size, modifiedAt: mtimeMs };
  }

  async *list(prefix: string, startAfter = ""): AsyncGenerator<ObjectInfo> {
    const keys = [...this.paths.keys()].filter((key) => key.startsWith(prefix) && key > startAfter);
    for (const key of keys.sort()) yield (await this.stat(key))!;
  }

  async withLocal<T>(keys: readonly string[], use: (paths: readonly string[]) => Promise<T>): Promise<T> {
    return use(keys.map((key) => this.paths.get(key) ?? "/nonexistent"));
  }

  async confirm(): Promise<void> {}
  async presignPut(): Promise<PresignedPut | undefined> {
    return undefined;
  }
  async put(): Promise<void> {
    throw readOnly();
  }
  async putIfAbsent(): Promise<"created" | "exists"> {
    throw readOnly();
  }
  async adopt(): Promise<void> {
    throw readOnly();
  }
  async delete(): Promise<void> {
    throw readOnly();
  }
}

const readOnly = () => new TributaryError("TRB-STORE-FAILED", "a source is never written to");
