import { constants } from "node:fs";
import { type FileHandle, open, readlink } from "node:fs/promises";
import { errno, TributaryError } from "../base/errors.js";
import { changedUnit, identityOf, type ReadUnit, requireUnchanged } from "./unit.js";

/**
 * A unit's file, held open: between two looks at its name that may lead elsewhere and back, as whoever writes exports
 * can have it, and an engine takes some names for patterns. What is read is what was listed.
 */
export class HeldFile {
  private constructor(
    readonly unit: ReadUnit,
    private readonly handle: FileHandle,
  ) {}

  /** Errors: TRB-SOURCE-CHANGED, TRB-SOURCE-UNREADABLE. */
  static async open(unit: ReadUnit): Promise<HeldFile> {
    await requireUnchanged(unit);
    const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
    // Without waiting: a pipe that stands there now has no other end.
    const handle = await open(unit.path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch((cause: unknown) => {
      throw new TributaryError("TRB-SOURCE-UNREADABLE", `${unit.shown}: ${errno(cause) ?? "failed"}`, {
        cause,
      });
    });
    const file = new HeldFile(unit, handle);
    try {
      if (unit.identity !== undefined && !(await file.isListed())) throw changedUnit(unit);
      return file;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Names it to engines and streams of this process, until `close`. */
  get path(): string {
    return `/dev/fd/${this.handle.fd}`;
  }

  /** Any number of times. */
  close(): Promise<void> {
    return this.handle.close();
  }

  /** Also a folder on the way may have been a link for a moment, when it was listed as well as now. */
  private async isListed(): Promise<boolean> {
    const { path, identity } = this.unit;
    const info = await this.handle.stat({ bigint: true });
    // Only Linux tells where an open file lies.
    const place = await readlink(`/proc/self/fd/${this.handle.fd}`).catch(() => path);
    return info.isFile() && identityOf(info) === identity && place === path;
  }
}
