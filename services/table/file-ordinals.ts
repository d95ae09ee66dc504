import { assert } from "../base/errors.js";
import { FILE_SHIFT, MAX_FILES, TOMBSTONE_BIT } from "./order.js";

/** Files by the numbers that records of standing rows name them by. */
export class FileOrdinals {
  private paths: (string | undefined)[] = [];
  private readonly ordinalOf = new Map<string, number>();
  private free: number[] = [];
  /** Of files that are gone; records may still name them. */
  private readonly dead = new Set<number>();

  /** FLAGS without the operation. Tombstones need no file: nothing masks them. */
  flagsOf(path: string, tombstones: boolean): number {
    return tombstones ? TOMBSTONE_BIT : this.of(path) << FILE_SHIFT;
  }

  private of(path: string): number {
    let ordinal = this.ordinalOf.get(path);
    if (ordinal === undefined) {
      ordinal = this.free.pop() ?? this.paths.length;
      assert(ordinal < MAX_FILES, "file ordinals are used up");
      this.paths[ordinal] = path;
      this.ordinalOf.set(path, ordinal);
    }
    return ordinal;
  }

  /** Path of the file that FLAGS of a row name; undefined when it is gone. */
  pathOf(flags: number): string | undefined {
    return this.paths[flags >>> FILE_SHIFT];
  }

  /** Whether a record names a file that is gone, so that it stands for nothing. */
  isDead(flags: number): boolean {
    return this.dead.size > 0 && (flags & TOMBSTONE_BIT) === 0 && this.dead.has(flags >>> FILE_SHIFT);
  }

  kill(path: string): void {
    const ordinal = this.ordinalOf.get(path);
    if (ordinal === undefined) return;
    this.ordinalOf.delete(path);
    this.paths[ordinal] = undefined;
    this.dead.add(ordinal);
  }

  get deadCount(): number {
    return this.dead.size;
  }

  /** No record names a file that is gone any more. */
  reuse(): void {
    for (const ordinal of this.dead) this.free.push(ordinal);
    this.dead.clear();
  }

  /** Tells FLAGS of rows in some files. */
  areOf(paths: Iterable<string>): (flags: number) => boolean {
    const known = new Set<number>();
    for (const path of paths) {
      const ordinal = this.ordinalOf.get(path);
      if (ordinal !== undefined) known.add(ordinal);
    }
    return (flags) => (flags & TOMBSTONE_BIT) === 0 && known.has(flags >>> FILE_SHIFT);
  }
}
