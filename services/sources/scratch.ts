import { randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { errno, TributaryError } from "../base/errors.js";

/** A bounded part of the local disk for copies of files that lie elsewhere. */
export class Scratch {
  private used = 0;
  private readonly waiting: { readonly bytes: number; readonly go: () => void }[] = [];

  private constructor(
    private readonly folder: string,
    private readonly bytes: number,
  ) {}

  /** Makes the folder, and empties it: nobody else's, whatever is in it is left over. Errors: TRB-SOURCE-SCRATCH. */
  static async open(folder: string, bytes: number): Promise<Scratch> {
    try {
      await rm(folder, { recursive: true, force: true });
      await mkdir(folder, { recursive: true });
    } catch (cause) {
      throw new TributaryError("TRB-SOURCE-SCRATCH", `scratch: ${errno(cause) ?? "failed"}`, { cause });
    }
    return new Scratch(folder, bytes);
  }

  /**
   * Runs `use` with a path for each of `sizes`, once there is room for all of them together, first come first served;
   * removes what it has put there. Errors: TRB-SOURCE-SCRATCH when there never will be; those of `use`.
   */
  async with<T>(sizes: readonly number[], use: (paths: readonly string[]) => Promise<T>): Promise<T> {
    const bytes = sizes.reduce((sum, size) => sum + size, 0);
    if (bytes > this.bytes) {
      const message = `files of ${bytes} bytes: expected at most ${this.bytes}, bulk.scratchBytes`;
      throw new TributaryError("TRB-SOURCE-SCRATCH", message);
    }
    if (this.waiting.length > 0 || this.used + bytes > this.bytes) {
      await new Promise<void>((go) => this.waiting.push({ bytes, go }));
    } else this.used += bytes;
    const paths = sizes.map(() => join(this.folder, randomUUID()));
    try {
      return await use(paths);
    } finally {
      await Promise.all(paths.map((path) => rm(path, { force: true }).catch(() => undefined)));
      this.used -= bytes;
      for (let next = this.waiting[0]; next !== undefined; next = this.waiting[0]) {
        if (this.used + next.bytes > this.bytes) break;
        this.waiting.shift();
        this.used += next.bytes;
        next.go();
      }
    }
  }
}
