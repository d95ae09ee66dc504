import type { BigIntStats } from "node:fs";
import { lstat, readdir, realpath, stat } from "node:fs/promises";
import { join, sep } from "node:path";
import { errno, TributaryError } from "../base/errors.js";
import { layout } from "../base/paths.js";
import {
  byPath,
  changed,
  DELTA_LOG,
  type FoundFile,
  insideLake,
  isHidden,
  type SourceRoot,
  shown,
  tableBelow,
} from "./root.js";
import { identityOf } from "./unit.js";

/** Files looked at together. */
const PARALLEL = 32;

/** Exports in a folder of this machine. Files are read where they lie. */
export class LocalRoot implements SourceRoot {
  readonly inPlace = true;

  /** `data` is the lake's own folder, which need not be there. */
  constructor(
    readonly name: string,
    private readonly folder: string,
    private readonly data: string,
  ) {}

  async list(path: string): Promise<FoundFile[]> {
    const top = await this.reach(path);
    if (top === undefined) return [];
    if (top.info.isFile()) return [found(path, top.info)];
    const own = await this.ownFolders();
    const files: FoundFile[] = [];
    const folders = [path];
    for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
      const all = await this.guard(folder, () => readdir(this.local(folder!)));
      if (folder !== path && all.includes(DELTA_LOG)) throw tableBelow(this.name, folder);
      const names = all.filter((one) => !isHidden(one));
      for (let i = 0; i < names.length; i += PARALLEL) {
        const stretch = names
          .slice(i, i + PARALLEL)
          .map((name) => (folder === "" ? name : `${folder}/${name}`));
        const infos = await Promise.all(stretch.map((one) => this.look(one)));
        for (const [at, below] of stretch.entries()) {
          const info = infos[at]!;
          if (info.isFile()) files.push(found(below, info));
          else if (own.has(inodeOf(info))) throw insideLake(this.name, below);
          else folders.push(below);
        }
      }
    }
    return files.sort(byPath);
  }

  async holds(path: string): Promise<boolean> {
    return (await this.reach(path)) !== undefined;
  }

  async withLocal<T>(files: readonly FoundFile[], use: (paths: readonly string[]) => Promise<T>): Promise<T> {
    for (const file of files) await this.requireSame(file);
    let result: T;
    try {
      const top = await this.guard("", () => realpath(this.folder));
      result = await use(files.map(({ path }) => join(top, path)));
    } catch (error) {
      // What a reader makes of a file that changes under it says less than that it did.
      for (const file of files) await this.requireSame(file);
      throw error;
    }
    for (const file of files) await this.requireSame(file);
    return result;
  }

  private async requireSame(file: FoundFile): Promise<void> {
    const now = await this.reach(file.path);
    if (now === undefined) throw changed(this.name, file.path, "it is gone");
    if (!now.info.isFile() || identityOf(now.info) !== file.identity) throw changed(this.name, file.path);
  }

  private local(path: string): string {
    return join(this.folder, path);
  }

  /**
   * What is at `path`, reached without links. Undefined when nothing is there.
   * Errors: TRB-SOURCE-LINK, TRB-SOURCE-LAKE, TRB-SOURCE-UNREADABLE.
   */
  private async reach(path: string): Promise<{ readonly info: BigIntStats } | undefined> {
    // The root itself is the operator's own words, and may be a link.
    const top = await this.guard("", () => realpath(this.folder));
    const data = await realpath(this.data).catch(() => this.data);
    const whole = join(top, path);
    if (within(whole, data) || within(data, whole)) throw insideLake(this.name, path);
    const names = path === "" ? [] : path.split("/");
    let info = await this.guard("", () => stat(top, { bigint: true }));
    for (let depth = 1; depth <= names.length; depth++) {
      const below = names.slice(0, depth).join("/");
      try {
        info = await this.look(below);
      } catch (error) {
        const code = error instanceof TributaryError ? errno(error.cause) : undefined;
        if (code === "ENOENT" || code === "ENOTDIR") return undefined;
        throw error;
      }
    }
    const own = await this.ownFolders();
    if (own.has(inodeOf(info))) throw insideLake(this.name, path);
    return { info };
  }

  /** Errors: TRB-SOURCE-LINK for what is neither file nor folder. */
  private async look(path: string): Promise<BigIntStats> {
    const info = await this.guard(path, () => lstat(this.local(path), { bigint: true }));
    if (info.isFile() || info.isDirectory()) return info;
    const what = info.isSymbolicLink() ? "a link" : "neither a file nor a folder";
    throw new TributaryError("TRB-SOURCE-LINK", `${shown(this.name, path)}: it is ${what}`);
  }

  /** The lake's folders by what the disk calls them: a mount may show them under another name. */
  private async ownFolders(): Promise<ReadonlySet<string>> {
    const all = [this.data, ...Object.values(layout(this.data))];
    const infos = await Promise.all(all.map((one) => stat(one, { bigint: true }).catch(() => undefined)));
    return new Set(infos.flatMap((info) => (info === undefined ? [] : [inodeOf(info)])));
  }

  private async guard<T>(path: string, step: () => Promise<T>): Promise<T> {
    try {
      return await step();
    } catch (cause) {
      const reason = errno(cause) ?? "failed";
      throw new TributaryError("TRB-SOURCE-UNREADABLE", `${shown(this.name, path)}: ${reason}`, { cause });
    }
  }
}

const inodeOf = ({ dev, ino }: BigIntStats): string => `${dev}:${ino}`;

const found = (path: string, info: BigIntStats): FoundFile => ({
  path,
  bytes: Number(info.size),
  identity: identityOf(info),
});

/** Whether `path` is `folder` or below it. */
const within = (path: string, folder: string): boolean =>
  path === folder || path.startsWith(folder.endsWith(sep) ? folder : folder + sep);
