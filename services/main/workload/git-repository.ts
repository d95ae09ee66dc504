import { isUtf8 } from "node:buffer";
import { type ChildProcess, spawn } from "node:child_process";
import { basename, resolve } from "node:path";
import { errno, TributaryError } from "../../base/errors.js";

/** A repository at one commit: what comes later does not show. */
export interface GitRepository {
  /** Where git is run. */
  readonly folder: string;
  /** The name of its folder, without ".git". */
  readonly name: string;
  /** Full object name of the commit; undefined while there is none. */
  readonly head: string | undefined;
  /** Commits of the first-parent history. */
  readonly commitCount: number;
}

/** The repository that `path` stands in. Undefined when it stands in none, or there is no git to ask. */
export async function openRepository(path: string): Promise<GitRepository | undefined> {
  const folder = resolve(path);
  const gitDir = await ask(folder, ["rev-parse", "--absolute-git-dir"]);
  if (gitDir === undefined) return undefined;
  // A bare repository has no top level; its own folder names it.
  const top = (await ask(folder, ["rev-parse", "--show-toplevel"])) || gitDir;
  const head = await ask(folder, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]);
  const count = head === undefined ? "0" : await ask(folder, ["rev-list", "--first-parent", "--count", head]);
  return { folder, name: basename(top).replace(/\.git$/, ""), head, commitCount: Number(count ?? 0) };
}

/** A tenant id made of any name: what the rule does not allow becomes "-". */
export function tenantOf(name: string): string {
  const allowed = name
    .normalize("NFKD")
    .replace(/\p{M}/gu, "")
    .replace(/[^A-Za-z0-9._:-]+/g, "-")
    .replace(/^[^A-Za-z0-9]+/, "")
    .slice(0, 128);
  return allowed === "" ? "repository" : allowed;
}

/** Paths of all files (submodules and links included) of the tree at `head`, as git itself lists them. */
export async function listTree({ folder, head }: GitRepository): Promise<string[]> {
  if (head === undefined) return [];
  const paths: string[] = [];
  const splitter = new Splitter((path) => paths.push(textOf(path)));
  for await (const chunk of git(folder, ["ls-tree", "-r", "--full-tree", "--name-only", "-z", head])) {
    splitter.push(chunk);
  }
  return paths;
}

/**
 * Git's bytes as text. Paths need not be UTF-8, entity ids must: what is not is read as Latin-1, which loses nothing.
 */
export const textOf = (bytes: Buffer): string => bytes.toString(isUtf8(bytes) ? "utf8" : "latin1");

/** Cuts a stream of chunks into what NUL ends. */
export class Splitter {
  private rest: Buffer[] = [];
  private readonly take: (token: Buffer) => void;

  constructor(take: (token: Buffer) => void) {
    this.take = take;
  }

  push(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(0); end >= 0; end = chunk.indexOf(0, start)) {
      const token = chunk.subarray(start, end);
      this.take(this.rest.length === 0 ? token : Buffer.concat([...this.rest, token]));
      this.rest = [];
      start = end + 1;
    }
    if (start < chunk.length) this.rest.push(chunk.subarray(start));
  }
}

/**
 * What git prints, in chunks; ends git when the reader stops early.
 * Errors: TRB-CLI-SOURCE when git cannot be run or fails.
 */
export async function* git(folder: string, args: readonly string[]): AsyncGenerator<Buffer> {
  const child = run(folder, args);
  const complaint: Buffer[] = [];
  child.stderr!.on("data", (chunk: Buffer) => complaint.push(chunk));
  const ended = new Promise<number | null>((done, fail) => {
    child.once("error", fail);
    child.once("close", done);
  });
  ended.catch(() => undefined);
  try {
    for await (const chunk of child.stdout!) yield chunk as Buffer;
    const status = await ended;
    if (status === 0) return;
    const reason = Buffer.concat(complaint).toString().trim().split("\n").at(-1) ?? "";
    throw new TributaryError("TRB-CLI-SOURCE", `git ${args[0]}: ${reason || `ended with status ${status}`}`);
  } catch (cause) {
    if (cause instanceof TributaryError || errno(cause) === undefined) throw cause;
    throw new TributaryError("TRB-CLI-SOURCE", `git cannot be run (${errno(cause)})`, { cause });
  } finally {
    if (child.exitCode === null) child.kill();
  }
}

/** One line of git's, or undefined when git has none to give. */
async function ask(folder: string, args: readonly string[]): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of git(folder, args)) chunks.push(chunk);
  } catch (error) {
    if (error instanceof TributaryError) return undefined;
    throw error;
  }
  return textOf(Buffer.concat(chunks)).replace(/\n$/, "");
}

function run(folder: string, args: readonly string[]): ChildProcess {
  const env: NodeJS.ProcessEnv = { ...process.env, LC_ALL: "C", GIT_OPTIONAL_LOCKS: "0", GIT_PAGER: "" };
  // A hook's environment would point git at the hook's repository, wherever it is run.
  for (const name of ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"]) delete env[name];
  return spawn("git", ["-C", folder, ...args], { env, stdio: ["ignore", "pipe", "pipe"] });
}
