import { dirname, join } from "node:path";
import type { FileOps, FileStat, OpenFile } from "../../services/base/files.js";

/** What every operation rejects with once the machine has lost power or the process was killed. */
export class CrashedError extends Error {}

interface Inode {
  readonly id: number;
  bytes: Buffer;
  /** What a power loss leaves for certain. */
  synced: Buffer;
  /** Changes since the last sync, in order. */
  unsynced: ({ at: number; bytes: Buffer } | { truncate: number })[];
}
type Node = Inode | "folder";
type NameChange = readonly { readonly path: string; readonly node: Node | undefined }[];

const systemError = (code: string) => Object.assign(new Error(`simulated ${code}`), { code });
const SECTOR = 512;
let inodes = 0;

/**
 * A file system in memory that keeps apart what is visible and what is durable. It counts and records operations,
 * can fail or stop at any of them, and can lose power: unsynced writes then survive in part, at any byte length or
 * in whatever set of sectors, and unsynced names in whatever subset.
 */
export class SimulatedFiles implements FileOps {
  /** Every operation as "name path", in the order of its effect. */
  readonly operations: string[] = [];
  /** Called before each operation takes effect and waited for; what it throws is the operation's outcome. */
  onOperation: ((operation: string, path: string) => void | Promise<void>) | undefined;
  /** Bytes that the disk still takes; a write beyond is short, the next one fails with ENOSPC. */
  space = Number.POSITIVE_INFINITY;
  /** The operation with this index, and all after it, have no effect. */
  crashAt = Number.POSITIVE_INFINITY;
  private readonly root: string;
  private readonly names: Map<string, Node>;
  private readonly durable: Map<string, Node>;
  /** Unsynced changes of names per folder. */
  private readonly changes: Map<string, NameChange[]>;
  private readonly watchers = new Set<{ folder: string; onChange: () => void }>();

  constructor(
    root = "/simulated",
    names = new Map<string, Node>([[root, "folder"]]),
    durable = new Map(names),
    changes = new Map<string, NameChange[]>(),
  ) {
    this.root = root;
    this.names = names;
    this.durable = durable;
    this.changes = changes;
  }

  get crashed(): boolean {
    return this.operations.length >= this.crashAt;
  }

  private async begin(operation: string, path: string): Promise<void> {
    await null; // as in reality, nothing takes effect in the caller's own step
    if (this.crashed) throw new CrashedError();
    await this.onOperation?.(operation, path);
    if (this.crashed) throw new CrashedError();
    this.operations.push(`${operation} ${path}`);
    if (this.crashed) throw new CrashedError();
  }

  private change(...change: NameChange): void {
    for (const { path, node } of change) {
      if (node === undefined) this.names.delete(path);
      else this.names.set(path, node);
    }
    const folder = dirname(change.at(-1)!.path);
    this.changes.set(folder, [...(this.changes.get(folder) ?? []), change]);
    this.notify(folder);
  }

  private notify(folder: string): void {
    for (const watcher of this.watchers) if (watcher.folder === folder) watcher.onChange();
  }

  private inode(path: string): Inode {
    const node = this.names.get(path);
    if (node === undefined) throw systemError("ENOENT");
    if (node === "folder") throw systemError("EISDIR");
    return node;
  }

  async open(path: string, how: "read" | "write" | "create"): Promise<OpenFile> {
    await this.begin(how === "create" ? "create" : "open", path);
    if (how === "create") {
      if (this.names.has(path)) throw systemError("EEXIST");
      if (this.names.get(dirname(path)) !== "folder") throw systemError("ENOENT");
      this.change({
        path,
        node: { id: ++inodes, bytes: Buffer.alloc(0), synced: Buffer.alloc(0), unsynced: [] },
      });
    }
    const inode = this.inode(path);
    return {
      read: async (into, at) => {
        await this.begin("read", path);
        const part = inode.bytes.subarray(at, at + into.length);
        into.set(part);
        return part.length;
      },
      write: async (from, at) => {
        await this.begin("write", path);
        const grows = Math.max(0, at + from.length - inode.bytes.length);
        const missing = Math.max(0, grows - this.space);
        const length = from.length - missing;
        if (length <= 0) throw systemError("ENOSPC");
        this.space -= grows - missing;
        const bytes = Buffer.from(from.subarray(0, length));
        inode.bytes = withWrite(inode.bytes, at, bytes);
        inode.unsynced.push({ at, bytes });
        this.notify(dirname(path));
        return length;
      },
      truncate: async (bytes) => {
        await this.begin("truncate", path);
        this.space += Math.max(0, inode.bytes.length - bytes);
        inode.bytes = withLength(inode.bytes, bytes);
        inode.unsynced.push({ truncate: bytes });
      },
      dataSync: async () => {
        await this.begin("dataSync", path);
        inode.synced = inode.bytes;
        inode.unsynced = [];
      },
      size: async () => {
        await this.begin("size", path);
        return inode.bytes.length;
      },
      close: async () => undefined,
    };
  }

  async link(from: string, to: string): Promise<void> {
    await this.begin("link", to);
    if (this.names.has(to)) throw systemError("EEXIST");
    this.change({ path: to, node: this.inode(from) });
  }

  async rename(from: string, to: string): Promise<void> {
    await this.begin("rename", to);
    const node = this.inode(from);
    // Atomic also across folders, as on a journalling file system: the file is never lost in between.
    this.change({ path: from, node: undefined }, { path: to, node });
  }

  async unlink(path: string): Promise<void> {
    await this.begin("unlink", path);
    this.inode(path);
    this.change({ path, node: undefined });
  }

  async setReadOnly(path: string): Promise<void> {
    await this.begin("setReadOnly", path);
    this.inode(path);
  }

  async makeFolder(path: string): Promise<void> {
    await this.begin("makeFolder", path);
    if (this.names.has(path)) throw systemError("EEXIST");
    if (this.names.get(dirname(path)) !== "folder") throw systemError("ENOENT");
    this.change({ path, node: "folder" });
  }

  async list(folder: string): Promise<{ name: string; isFolder: boolean }[]> {
    await this.begin("list", folder);
    const at = join(folder, "x").slice(0, -2);
    if (this.names.get(at) !== "folder") throw systemError("ENOENT");
    return [...this.names]
      .filter(([path]) => dirname(path) === at && path !== at)
      .map(([path, node]) => ({ name: path.slice(at.length + 1), isFolder: node === "folder" }));
  }

  async stat(path: string): Promise<FileStat | undefined> {
    await this.begin("stat", path);
    const node = this.names.get(path);
    if (node === undefined) return undefined;
    return node === "folder"
      ? { bytes: 0, isFolder: true, inode: 0, modifiedAt: 0 }
      : { bytes: node.bytes.length, isFolder: false, inode: node.id, modifiedAt: 0 };
  }

  async syncFolder(path: string): Promise<void> {
    await this.begin("syncFolder", path);
    for (const change of this.changes.get(path) ?? []) applyTo(this.durable, change);
    this.changes.delete(path);
  }

  watch(folder: string, onChange: () => void): () => void {
    const watcher = { folder, onChange };
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  }

  /** Changes bytes behind everyone's back, as a failing disk does. */
  damage(path: string, change: (bytes: Buffer) => void): void {
    const inode = this.inode(path);
    inode.bytes = Buffer.from(inode.bytes);
    change(inode.bytes);
    inode.synced = inode.bytes;
  }

  /** Every process gone, the machine still up: what was written is there, durable or not. */
  afterKill(): SimulatedFiles {
    dropLocks(this.names);
    return new SimulatedFiles(this.root, this.names, this.durable, this.changes);
  }

  /** The state after a power loss, one of the many possible, chosen by `random` (0 ≤ number < 1). */
  afterPowerLoss(random: () => number): SimulatedFiles {
    const names = new Map(this.durable);
    for (const changes of this.changes.values()) {
      for (const change of changes) if (random() < 0.5) applyTo(names, change);
    }
    for (const path of names.keys()) {
      // What lies in a folder that was lost is lost.
      for (let above = dirname(path); above.length > this.root.length; above = dirname(above)) {
        if (names.get(above) !== "folder") names.delete(path);
      }
    }
    dropLocks(names);
    // Two names of one file stay two names of one file.
    const copies = new Map<Inode, Inode>();
    for (const [path, node] of names) {
      if (node === "folder") continue;
      let copy = copies.get(node);
      if (copy === undefined) {
        const bytes = surviving(node, random);
        copy = { id: ++inodes, bytes, synced: bytes, unsynced: [] };
        copies.set(node, copy);
      }
      names.set(path, copy);
    }
    return new SimulatedFiles(this.root, names);
  }
}

/** The simulated processes run in this one, so their locks look alive when they are not. */
function dropLocks(names: Map<string, Node>): void {
  for (const path of [...names.keys()]) if (path.endsWith(".lock")) names.delete(path);
}

function surviving(inode: Inode, random: () => number): Buffer {
  let bytes = inode.synced;
  if (random() < 0.5) {
    // In order, up to some byte of some write.
    const whole = Math.floor(random() * (inode.unsynced.length + 1));
    for (const [i, change] of inode.unsynced.entries()) {
      if (i > whole) break;
      if ("truncate" in change) {
        if (i < whole) bytes = withLength(bytes, change.truncate);
        continue;
      }
      const length = i < whole ? change.bytes.length : Math.floor(random() * (change.bytes.length + 1));
      bytes = withWrite(bytes, change.at, change.bytes.subarray(0, length));
    }
    return bytes;
  }
  // Any sectors; the length may be that of the whole although contents are missing.
  for (const change of inode.unsynced) {
    if ("truncate" in change) {
      if (random() < 0.5) bytes = withLength(bytes, change.truncate);
      continue;
    }
    if (random() < 0.5) bytes = withLength(bytes, Math.max(bytes.length, change.at + change.bytes.length));
    for (let from = 0; from < change.bytes.length; ) {
      const sectorEnd = (Math.floor((change.at + from) / SECTOR) + 1) * SECTOR - change.at;
      const to = Math.min(change.bytes.length, sectorEnd);
      if (random() < 0.5) bytes = withWrite(bytes, change.at + from, change.bytes.subarray(from, to));
      from = to;
    }
  }
  return bytes;
}

function withWrite(old: Buffer, at: number, bytes: Buffer): Buffer {
  if (bytes.length === 0) return old;
  const result = withLength(old, Math.max(old.length, at + bytes.length));
  bytes.copy(result, at);
  return result;
}

function withLength(old: Buffer, length: number): Buffer {
  const result = Buffer.alloc(length);
  old.copy(result, 0, 0, Math.min(old.length, length));
  return result;
}

function applyTo(names: Map<string, Node>, change: NameChange): void {
  for (const { path, node } of change) {
    if (node === undefined) names.delete(path);
    else names.set(path, node);
  }
}
