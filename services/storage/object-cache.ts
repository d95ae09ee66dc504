import { createHash, randomUUID } from "node:crypto";
import { readFileSync, renameSync, rmSync } from "node:fs";
import { chmod, link, mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { errno, TributaryError } from "../base/errors.js";

/** How long a lease waits for others to end when there is no room. */
const ROOM_MS = 30_000;
const WHOLE_NAME = /^[0-9a-f]{64}$/;

export interface CacheOptions {
  /** Of all processes on the machine that share a data folder: each finds there what another has fetched. */
  readonly folder: string;
  /** The process's part of the folder. Nobody else's while it runs. */
  readonly user: string;
  /** Bytes of files that this process may hold. */
  readonly bytes: number;
  /** Tells the objects of this store apart from those of another one with the same keys. */
  readonly place: string;
  /** How long a lease waits for room, in ms (tests). */
  readonly roomMs?: number;
}

/** Makes room for a file of so many bytes; tells whether that took time. */
export type MakeRoom = (bytes: number) => Promise<"at once" | "waited">;

/**
 * Fetches an object into a new file at `path`; awaits `room` with its length before the first byte is written, and
 * before each further try. Resolves to false when there is no such object. Errors: TRB-STORE-FAILED, caused by the file
 * system's own where it is that.
 */
export type Fetch = (key: string, path: string, room: MakeRoom) => Promise<boolean>;

interface Entry {
  readonly name: string;
  readonly path: string;
  /** Of the file, also while it is being fetched; undefined while nothing is known of it. */
  bytes: number | undefined;
  readonly leases: Set<Lease>;
  /** Settles when the file is there or could not be had. */
  ready: Promise<void>;
  busy: boolean;
  /** Its object is deleted: it goes with its last lease. */
  dropped: boolean;
}

/** One use of some files. */
interface Lease {
  /** Of its files, as far as known. */
  bytes: number;
  refuse(error: TributaryError): void;
}

/**
 * Immutable objects as local files, bounded in bytes: least recently used ones go first, those that are lent never.
 * Several that want one object share one fetch. A file gets its name once it is whole; names are digests of keys, so
 * that no key leads to another's file. What a killed process left is whole, and used again until the machine starts
 * anew: files are not synced, so that a power loss may leave less of them than their names promise.
 */
export class ObjectCache {
  /** By name, least recently used first. */
  private readonly entries = new Map<string, Entry>();
  private held = 0;
  /** Called when something may have become free. */
  private readonly waiting = new Set<() => void>();
  private readonly folder: string;
  /** With the folders of all processes. */
  private readonly above: string;

  private constructor(private readonly options: CacheOptions) {
    this.above = cachesIn(options.folder);
    this.folder = join(this.above, options.user);
  }

  /** Errors: TRB-STORE-FAILED. */
  static async open(options: CacheOptions): Promise<ObjectCache> {
    const cache = new ObjectCache(options);
    await guard(async () => {
      if (bootId() === undefined) await rm(cache.folder, { recursive: true, force: true });
      await mkdir(cache.folder, { recursive: true, mode: 0o700 });
      for (const name of await readdir(options.folder)) {
        if (join(options.folder, name) !== cache.above)
          await rm(join(options.folder, name), { recursive: true, force: true });
      }
      await cache.takeStock();
    });
    return cache;
  }

  private async takeStock(): Promise<void> {
    const left: { name: string; bytes: number; at: number }[] = [];
    for (const name of await readdir(this.folder)) {
      const path = join(this.folder, name);
      if (!WHOLE_NAME.test(name)) await rm(path, { recursive: true, force: true });
      else {
        const { size, atimeMs } = await stat(path);
        left.push({ name, bytes: size, at: atimeMs });
      }
    }
    for (const { name, bytes } of left.sort((a, b) => a.at - b.at)) this.remember(name, bytes);
    this.evict(0);
  }

  /** Bytes of the files that are held now. */
  get bytes(): number {
    return this.held;
  }

  /**
   * Runs `use` with a path for each key; the files stay until it ends. A key without an object gets the path of no
   * file. Errors: TRB-STORE-CACHE-SMALL, TRB-STORE-FAILED; those of `use`.
   */
  async withLocal<T>(
    keys: readonly string[],
    fetch: Fetch,
    use: (paths: readonly string[]) => Promise<T>,
  ): Promise<T> {
    let refuse: (error: TributaryError) => void = () => undefined;
    const refused = new Promise<never>((_, reject) => {
      refuse = reject;
    });
    refused.catch(() => undefined);
    const lease: Lease = { bytes: 0, refuse };
    const entries = [...new Set(keys)].map((key) => this.take(key, lease, fetch));
    try {
      await Promise.race([Promise.all(entries.map(({ ready }) => ready)), refused]);
      return await use(keys.map((key) => join(this.folder, this.nameOf(key))));
    } finally {
      for (const entry of entries) {
        entry.leases.delete(lease);
        if (entry.dropped && entry.leases.size === 0) this.remove(entry);
      }
      this.stir();
    }
  }

  /** As `withLocal`, with files fetched for this use alone: for objects that may have been put anew. */
  async withFresh<T>(
    keys: readonly string[],
    fetch: Fetch,
    use: (paths: readonly string[]) => Promise<T>,
  ): Promise<T> {
    const files = keys.map((key) => ({ key, path: this.temporary(), bytes: 0 }));
    try {
      const fetches = files.map((file) =>
        guard(() =>
          fetch(file.key, file.path, async (bytes) => {
            this.held -= file.bytes;
            file.bytes = 0;
            const others = files.reduce((sum, each) => sum + each.bytes, 0);
            if (others + bytes > this.options.bytes) throw this.tooSmall();
            const how = await this.room(bytes);
            file.bytes = bytes;
            return how;
          }),
        ),
      );
      for (const outcome of await Promise.allSettled(fetches))
        if (outcome.status === "rejected") throw outcome.reason;
      return await use(files.map(({ path }) => path));
    } finally {
      for (const { path, bytes } of files) {
        rmSync(path, { force: true });
        this.held -= bytes;
      }
      this.stir();
    }
  }

  /** Takes over a local file that has just become an object, if there is room; the file is gone either way. */
  async adopt(key: string, file: string): Promise<void> {
    const name = this.nameOf(key);
    try {
      const { size } = await stat(file);
      await chmod(file, 0o444);
      if (size <= this.options.bytes && !this.entries.has(name)) {
        renameSync(file, join(this.folder, name));
        this.remember(name, size);
        this.evict(0);
      }
    } catch {
      // It is only a copy: who reads it fetches it.
    }
    await rm(file, { force: true }).catch(() => undefined);
  }

  /** Forgets objects that are deleted. Who has one on loan keeps it. */
  drop(keys: readonly string[]): void {
    for (const key of keys) {
      const entry = this.entries.get(this.nameOf(key));
      if (entry === undefined) continue;
      if (entry.leases.size === 0 && !entry.busy) this.remove(entry);
      else entry.dropped = true;
    }
  }

  private take(key: string, lease: Lease, fetch: Fetch): Entry {
    const name = this.nameOf(key);
    const entry = this.entries.get(name) ?? this.entryOf(name);
    // The one used last stands last.
    this.entries.delete(name);
    this.entries.set(name, entry);
    entry.leases.add(lease);
    this.count(lease, entry.bytes ?? 0);
    if (!entry.busy) {
      entry.busy = true;
      entry.ready = this.provide(key, entry, fetch).finally(() => {
        entry.busy = false;
        this.stir();
      });
      entry.ready.catch(() => undefined);
    }
    return entry;
  }

  private async provide(key: string, entry: Entry, fetch: Fetch): Promise<void> {
    if (entry.bytes !== undefined) {
      // Somebody may have cleared the folder.
      const { size } = await stat(entry.path).catch(() => ({ size: -1 }));
      if (size === entry.bytes) return;
      this.release(entry);
    }
    try {
      if (await this.linked(entry)) return;
      await guard(() => this.fetched(key, entry, fetch));
    } finally {
      // Where nothing came of it, the next one tries again.
      if (entry.bytes === undefined && this.entries.get(entry.name) === entry)
        this.entries.delete(entry.name);
    }
  }

  private async fetched(key: string, entry: Entry, fetch: Fetch): Promise<void> {
    const path = this.temporary();
    const get = () => fetch(key, path, (bytes) => this.reserve(entry, bytes));
    try {
      const found = await get().catch((error: unknown) => {
        if (errno(error instanceof TributaryError ? error.cause : error) !== "ENOSPC") throw error;
        // Others use the disk too: what need not be here goes, and one more try is worth it.
        this.release(entry);
        this.evict(Number.POSITIVE_INFINITY);
        rmSync(path, { force: true });
        return get();
      });
      if (!found) return;
      await chmod(path, 0o444);
      await rename(path, entry.path);
    } catch (error) {
      this.release(entry);
      throw error;
    } finally {
      rmSync(path, { force: true });
    }
  }

  /** Another process of this machine may have it: then it is one file with two names. */
  private async linked(entry: Entry): Promise<boolean> {
    for (const user of await readdir(this.above).catch(() => [])) {
      if (user === this.options.user) continue;
      const other = join(this.above, user, entry.name);
      const found = await stat(other).catch(() => undefined);
      if (found === undefined) continue;
      await this.reserve(entry, found.size);
      try {
        await link(other, entry.path);
        return true;
      } catch {
        // It has let go of it meanwhile.
        this.release(entry);
      }
    }
    return false;
  }

  /** Makes room for a file that is about to be written; once a try has failed, for the next one's. */
  private async reserve(entry: Entry, bytes: number): Promise<"at once" | "waited"> {
    this.release(entry);
    for (const lease of entry.leases) this.count(lease, bytes);
    const how = await this.room(bytes, entry);
    entry.bytes = bytes;
    return how;
  }

  private release(entry: Entry): void {
    this.held -= entry.bytes ?? 0;
    for (const lease of entry.leases) lease.bytes -= entry.bytes ?? 0;
    entry.bytes = undefined;
  }

  private count(lease: Lease, bytes: number): void {
    lease.bytes += bytes;
    if (lease.bytes > this.options.bytes) lease.refuse(this.tooSmall());
  }

  private async room(bytes: number, entry?: Entry): Promise<"at once" | "waited"> {
    if (bytes > this.options.bytes) throw this.tooSmall();
    const deadline = performance.now() + (this.options.roomMs ?? ROOM_MS);
    for (let how: "at once" | "waited" = "at once"; ; how = "waited") {
      if (entry?.leases.size === 0) throw failed("nobody waits any more");
      this.evict(bytes);
      if (this.held + bytes <= this.options.bytes) {
        this.held += bytes;
        return how;
      }
      const left = deadline - performance.now();
      if (left <= 0) throw failed("all of it is in use");
      await this.stirred(left);
    }
  }

  /** Lets files go, least recently used first, until there is room for so many bytes or none is left that can go. */
  private evict(bytes: number): void {
    for (const entry of [...this.entries.values()]) {
      if (this.held + bytes <= this.options.bytes) return;
      if (entry.leases.size === 0 && !entry.busy) this.remove(entry);
    }
  }

  /** At once, or a file that is fetched anew meanwhile would go in its place. */
  private remove(entry: Entry): void {
    if (this.entries.get(entry.name) === entry) this.entries.delete(entry.name);
    this.release(entry);
    rmSync(entry.path, { force: true });
  }

  private remember(name: string, bytes: number): void {
    this.entries.set(name, { ...this.entryOf(name), bytes });
    this.held += bytes;
  }

  private entryOf(name: string): Entry {
    const path = join(this.folder, name);
    const ready = Promise.resolve();
    return { name, path, bytes: undefined, leases: new Set(), ready, busy: false, dropped: false };
  }

  private tooSmall(): TributaryError {
    const message = `storage.s3.cacheBytes: files that are needed together are larger than ${this.options.bytes} bytes`;
    return new TributaryError("TRB-STORE-CACHE-SMALL", message);
  }

  private stir(): void {
    for (const wake of [...this.waiting]) wake();
  }

  /** Resolves when something may have become free, after `ms` at the latest. */
  private async stirred(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.waiting.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      this.waiting.add(wake);
    });
  }

  private nameOf(key: string): string {
    return createHash("sha256")
      .update(JSON.stringify([this.options.place, key]))
      .digest("hex");
  }

  private temporary(): string {
    return join(this.folder, `${randomUUID()}.tmp`);
  }
}

/** Changes when the machine starts; undefined where that cannot be told. */
function bootId(): string | undefined {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
  } catch {
    return undefined;
  }
}

/** The folder with one folder for each process that has a cache below `folder`. */
export const cachesIn = (folder: string): string => join(folder, bootId() ?? "boot");

/** Removes the cache of a process that ends for good. */
export function clearCopies(folder: string, user: string): void {
  rmSync(join(cachesIn(folder), user), { recursive: true, force: true });
}

const failed = (reason: string, cause?: unknown) =>
  new TributaryError("TRB-STORE-FAILED", `cache: ${reason}`, { cause });

async function guard<T>(step: () => Promise<T>): Promise<T> {
  try {
    return await step();
  } catch (error) {
    throw error instanceof TributaryError ? error : failed(errno(error) ?? "failed", error);
  }
}
