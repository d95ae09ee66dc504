import { randomUUID } from "node:crypto";
import { link, mkdir, readdir, rename, rm, stat, truncate } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type FileOps, type FileStat, nodeFiles, type OpenFile } from "../../services/base/files.js";
import type { Random } from "./lake.js";

export const FAULTS = ["EIO", "EIO after the fact", "ENOSPC", "kill", "power loss"] as const;
/** What becomes of the operation at which a fault is due. After the last two nothing has any effect. */
export type FileFault = (typeof FAULTS)[number];

const systemError = (code: string) => Object.assign(new Error(`fault of the test: ${code}`), { code });
/** Operations that take space; a full disk refuses them. */
const GROWING = new Set(["create", "write", "link", "rename", "makeFolder"]);
/** Refusals until somebody has made room. */
const FULL_FOR = 3;

/**
 * The real file system with a fault at one operation, by number. It keeps in mind which names and contents were never
 * synced, so that afterwards it can take them away as a power loss does. `aside`: a folder of its own, same volume.
 */
export class FaultFiles implements FileOps {
  /** Operations since `arm`. */
  count = 0;
  /** "operation path" that met the fault. */
  victim: string | undefined;
  private at = Number.POSITIVE_INFINITY;
  private fault: FileFault = "EIO";
  private refusals = 0;
  private dead = false;
  /** How to take back each unsynced change of a folder's names, oldest first. */
  private readonly changes = new Map<string, (() => Promise<unknown>)[]>();
  /** Files whose contents are sure to survive. */
  private readonly synced = new Set<number>();
  /** Files that got a name or bytes here. */
  private readonly touched = new Set<number>();

  constructor(private readonly aside: string) {}

  arm(at: number, fault: FileFault): void {
    this.count = 0;
    this.at = at;
    this.fault = fault;
  }

  disarm(): void {
    this.at = Number.POSITIVE_INFINITY;
    this.refusals = 0;
  }

  /** Nothing has any effect from now on: the process is gone. */
  kill(): void {
    this.dead = true;
  }

  private async pass<T>(operation: string, path: string, run: () => Promise<T>): Promise<T> {
    if (this.dead) throw systemError("EIO");
    const due = this.count++ === this.at;
    if (due) {
      this.victim = `${operation} ${path}`;
      if (this.fault === "ENOSPC") this.refusals = FULL_FOR;
      else if (this.fault === "EIO after the fact") {
        const result = await run();
        if (typeof result === "object" && result !== null && "close" in result)
          await (result as unknown as OpenFile).close();
        throw systemError("EIO");
      } else {
        if (this.fault !== "EIO") this.dead = true;
        throw systemError("EIO");
      }
    }
    if (this.refusals > 0 && GROWING.has(operation)) {
      this.refusals--;
      throw systemError("ENOSPC");
    }
    return run();
  }

  private changed(path: string, undo: () => Promise<unknown>): void {
    const folder = dirname(path);
    this.changes.set(folder, [...(this.changes.get(folder) ?? []), undo]);
  }

  /** Keeps what is at `path`; resolves to the way to put it back. */
  private async keep(path: string): Promise<() => Promise<unknown>> {
    const copy = join(this.aside, randomUUID());
    try {
      await link(path, copy);
    } catch {
      return async () => undefined; // nothing there
    }
    return async () => {
      await rm(path, { force: true });
      await rename(copy, path);
    };
  }

  async open(path: string, how: "read" | "write" | "create"): Promise<OpenFile> {
    return this.pass(how === "create" ? "create" : "open", path, async () => {
      const file = await nodeFiles.open(path, how);
      const { ino } = await stat(path);
      if (how === "create") {
        this.touched.add(ino);
        // Numbers of deleted files are given again.
        this.synced.delete(ino);
        this.changed(path, () => rm(path, { force: true }));
      }
      const changing = () => {
        this.touched.add(ino);
        this.synced.delete(ino);
      };
      return {
        read: (into, at) => this.pass("read", path, () => file.read(into, at)),
        write: (from, at) =>
          this.pass("write", path, () => {
            changing();
            return file.write(from, at);
          }),
        truncate: (bytes) =>
          this.pass("truncate", path, () => {
            changing();
            return file.truncate(bytes);
          }),
        // Not to the disk: what a power loss leaves is decided here.
        dataSync: () => this.pass("dataSync", path, async () => void this.synced.add(ino)),
        size: () => file.size(),
        close: () => file.close(),
      };
    });
  }

  link(from: string, to: string): Promise<void> {
    return this.pass("link", to, async () => {
      await nodeFiles.link(from, to);
      this.touched.add((await stat(to)).ino);
      this.changed(to, () => rm(to, { force: true }));
    });
  }

  rename(from: string, to: string): Promise<void> {
    return this.pass("rename", to, async () => {
      const before = await this.keep(to);
      await nodeFiles.rename(from, to);
      this.touched.add((await stat(to)).ino);
      this.changed(to, async () => {
        await rm(to, { force: true });
        await before();
      });
    });
  }

  unlink(path: string): Promise<void> {
    return this.pass("unlink", path, async () => {
      const before = await this.keep(path);
      await nodeFiles.unlink(path);
      this.changed(path, before);
    });
  }

  setReadOnly(path: string): Promise<void> {
    return this.pass("setReadOnly", path, () => nodeFiles.setReadOnly(path));
  }

  makeFolder(path: string): Promise<void> {
    return this.pass("makeFolder", path, async () => {
      await nodeFiles.makeFolder(path);
      this.changed(path, () => rm(path, { recursive: true, force: true }));
    });
  }

  list(folder: string): Promise<readonly { readonly name: string; readonly isFolder: boolean }[]> {
    return this.pass("list", folder, () => nodeFiles.list(folder));
  }

  stat(path: string): Promise<FileStat | undefined> {
    return this.pass("stat", path, () => nodeFiles.stat(path));
  }

  syncFolder(path: string): Promise<void> {
    return this.pass("syncFolder", path, async () => void this.changes.delete(path));
  }

  watch(folder: string, onChange: () => void): () => void {
    return nodeFiles.watch(folder, onChange);
  }

  /** Takes away, by chance, what was never synced below `folder`: of each folder's changes of names those since some moment. */
  async losePower(folder: string, random: Random): Promise<void> {
    this.dead = true;
    for (const undos of this.changes.values()) {
      const kept = random.below(undos.length + 1);
      for (const undo of undos.slice(kept).reverse()) await undo().catch(() => undefined);
    }
    for (const path of await filesBelow(folder)) {
      const { ino, size } = await stat(path);
      if (this.touched.has(ino) && !this.synced.has(ino)) await truncate(path, random.below(size + 1));
    }
  }
}

export async function filesBelow(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

export const makeAside = async (folder: string): Promise<string> => {
  await mkdir(folder, { recursive: true });
  return folder;
};
