import type { ObjectInfo, ObjectStore } from "../../services/storage/object-store.js";

const notHere = (): never => {
  throw new Error("no files here");
};

/** Objects in memory, whose age goes by `Date`: for tests that move it. */
export class MemoryStore implements ObjectStore {
  private readonly objects = new Map<string, { readonly bytes: Buffer; readonly at: number }>();
  readonly staging = "";
  readonly leaseBytes = 0;

  async get(key: string): Promise<Buffer | undefined> {
    return this.objects.get(key)?.bytes;
  }

  async stat(key: string): Promise<ObjectInfo | undefined> {
    const found = this.objects.get(key);
    return found && { key, bytes: found.bytes.length, modifiedAt: found.at };
  }

  async put(key: string, bytes: Uint8Array): Promise<void> {
    this.objects.set(key, { bytes: Buffer.from(bytes), at: Date.now() });
  }

  async putIfAbsent(key: string, bytes: Uint8Array): Promise<"created" | "exists"> {
    if (this.objects.has(key)) return "exists";
    await this.put(key, bytes);
    return "created";
  }

  async *list(prefix: string, startAfter = ""): AsyncGenerator<ObjectInfo> {
    for (const key of [...this.objects.keys()].sort()) {
      if (!key.startsWith(prefix) || key <= startAfter) continue;
      const info = await this.stat(key);
      if (info !== undefined) yield info;
    }
  }

  async confirm(): Promise<void> {}

  async presignPut(): Promise<undefined> {}

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) this.objects.delete(key);
  }

  getRange = notHere;
  adopt = notHere;
  withLocal = notHere;
}
