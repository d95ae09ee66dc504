import { createHash } from "node:crypto";
import type protobuf from "protobufjs";
import { encodeEvent } from "../../contracts/encode-event.js";
import { OPERATION_CREATED, OPERATION_DELETED, OPERATION_UPDATED } from "../../contracts/envelope.js";
import type { ProtoRegistry } from "../../contracts/registry.js";
import { type GitRepository, git, Splitter, textOf } from "./git-repository.js";

/** The events of one commit, each in the wire format: the commit's own, then one per path it changed. */
export interface GitCommit {
  /** From 1; the version of all its events. */
  readonly ordinal: number;
  readonly sha: string;
  readonly subject: string;
  /** Author date, seconds since the epoch. */
  readonly at: number;
  readonly events: readonly Buffer[];
}

export interface LiveFile {
  readonly createdAt: number;
  readonly changeCount: number;
  readonly linesAdded: number;
  readonly linesDeleted: number;
}

/** Years 1 to 9999, in seconds since the epoch: what a Timestamp holds. Author dates are what somebody typed. */
const MIN_SECONDS = -62_135_596_800;
const MAX_SECONDS = 253_402_300_799;
const MAX_ENTITY_ID_BYTES = 1024;

/**
 * The first-parent history of a repository as scm events, in one pass over `git log`: commits are created once; files
 * are created, updated, deleted and created again, each with the ordinal of the commit as version. A rename is a
 * delete and a create; binary files count no lines; a submodule is a file at its path. A merge is what it changed
 * against its first parent; the oldest commit of a shallow clone creates all its files.
 */
export class GitHistory {
  /** Files as of the last commit read, by path. */
  readonly live = new Map<string, LiveFile>();
  /** Paths that are gone as of the last commit read, with the commit that deleted each; latest last. */
  readonly deleted = new Map<string, GitCommit>();
  private readonly repository: GitRepository;
  private readonly tenant: string;
  private readonly commitType: protobuf.Type;
  private readonly fileType: protobuf.Type;
  private ordinal = 0;

  constructor(repository: GitRepository, options: { tenant: string; registry: ProtoRegistry }) {
    this.repository = repository;
    this.tenant = options.tenant;
    this.commitType = options.registry.codec("scm.v1.Commit");
    this.fileType = options.registry.codec("scm.v1.File");
  }

  /** All commits, oldest first. To be read once. Errors: TRB-CLI-SOURCE. */
  async *commits(): AsyncGenerator<GitCommit> {
    const { folder, head } = this.repository;
    if (head === undefined) return;
    const parser = new LogParser();
    for await (const chunk of git(folder, [...LOG, head, "--"])) {
      for (const commit of parser.push(chunk)) yield this.commit(commit);
    }
    for (const commit of parser.end()) yield this.commit(commit);
  }

  private commit(logged: LoggedCommit): GitCommit {
    const events: Buffer[] = [];
    const { sha, subject, at } = logged;
    const commit: GitCommit = { ordinal: ++this.ordinal, sha, subject, at, events };
    const author = `author-${createHash("sha256").update(logged.email.toLowerCase()).digest("hex").slice(0, 8)}`;
    let insertions = 0;
    let deletions = 0;
    for (const change of logged.changes.values()) {
      insertions += change.added;
      deletions += change.deleted;
    }
    const payload = this.commitType
      .encode({
        sha,
        author,
        authored_at: { seconds: at },
        subject,
        parents: logged.parents,
        files_changed: logged.changes.size,
        insertions,
        deletions,
      })
      .finish();
    events.push(this.event("scm.v1.Commit", sha, OPERATION_CREATED, commit, payload));
    for (const [path, change] of logged.changes) events.push(this.file(path, change, commit, author));
    return commit;
  }

  private file(path: string, change: Change, commit: GitCommit, author: string): Buffer {
    const id = fileId(path);
    if (change.status === "D") {
      this.live.delete(path);
      this.deleted.delete(path);
      this.deleted.set(path, commit);
      return this.event("scm.v1.File", id, OPERATION_DELETED, commit, undefined);
    }
    const before = this.live.get(path);
    const file: LiveFile = {
      createdAt: before?.createdAt ?? commit.at,
      changeCount: (before?.changeCount ?? 0) + 1,
      linesAdded: (before?.linesAdded ?? 0) + change.added,
      linesDeleted: (before?.linesDeleted ?? 0) + change.deleted,
    };
    this.live.set(path, file);
    this.deleted.delete(path);
    const slash = path.lastIndexOf("/");
    const name = path.slice(slash + 1);
    const dot = name.lastIndexOf(".");
    const payload = this.fileType
      .encode({
        path,
        directory: slash < 0 ? "" : path.slice(0, slash),
        // The dot of .gitignore begins a name, not an extension.
        extension: dot > 0 ? name.slice(dot + 1) : "",
        last_commit_sha: commit.sha,
        last_author: author,
        created_at: { seconds: file.createdAt },
        modified_at: { seconds: commit.at },
        change_count: file.changeCount,
        lines_added: file.linesAdded,
        lines_deleted: file.linesDeleted,
      })
      .finish();
    return this.event("scm.v1.File", id, before ? OPERATION_UPDATED : OPERATION_CREATED, commit, payload);
  }

  private event(
    entityType: string,
    entityId: string,
    operation: number,
    commit: GitCommit,
    payload: Uint8Array | undefined,
  ): Buffer {
    return encodeEvent({
      tenantId: this.tenant,
      entityType,
      entityId,
      operation,
      version: commit.ordinal,
      occurredAt: { seconds: commit.at },
      ...(payload === undefined ? {} : { payload: { value: payload } }),
    });
  }
}

/** The path; one that is longer than an entity id may be is named by its hash instead. */
export function fileId(path: string): string {
  if (Buffer.byteLength(path) <= MAX_ENTITY_ID_BYTES) return path;
  return `sha256:${createHash("sha256").update(path).digest("hex")}`;
}

/** Whatever the user's git is configured to show, this prints the same. */
const LOG = [
  "log",
  "--first-parent",
  "-m",
  "--reverse",
  "--root",
  "--raw",
  "--numstat",
  "-z",
  "--no-abbrev",
  "--no-renames",
  "--no-relative",
  "--ignore-submodules=none",
  "--no-ext-diff",
  "--no-textconv",
  "--no-color",
  "--no-notes",
  "--no-show-signature",
  "--diff-algorithm=myers",
  "--encoding=UTF-8",
  "--format=tformat:%H%x00%P%x00%ae%x00%at%x00%s",
];
const HEADER_TOKENS = 5;

interface Change {
  /** A, M, D or T (a file became a link, or the like). */
  readonly status: string;
  added: number;
  deleted: number;
}

interface LoggedCommit {
  readonly sha: string;
  readonly parents: readonly string[];
  readonly email: string;
  readonly at: number;
  readonly subject: string;
  readonly changes: Map<string, Change>;
}

/**
 * Reads what `git log -z` prints: per commit five tokens of the header, then raw entries (":<modes> <ids> <status>",
 * path), then numstat entries ("<added>\t<deleted>\t<path>"). A path is told by its place, never by what it holds.
 */
class LogParser {
  private readonly splitter = new Splitter((token) => this.take(token));
  private done: LoggedCommit[] = [];
  private header: string[] = [];
  private commit: LoggedCommit | undefined;
  private status: string | undefined;

  /** The commits that are complete with this chunk. */
  push(chunk: Buffer): readonly LoggedCommit[] {
    this.done = [];
    this.splitter.push(chunk);
    return this.done;
  }

  end(): readonly LoggedCommit[] {
    return this.commit === undefined ? [] : [this.commit];
  }

  private take(token: Buffer): void {
    if (this.status !== undefined) {
      this.commit?.changes.set(textOf(token), { status: this.status, added: 0, deleted: 0 });
      this.status = undefined;
    } else if (this.header.length > 0) this.takeHeader(token.toString("utf8"));
    else {
      // A line break stands between a header and its entries.
      const entry = token[0] === 0x0a ? token.subarray(1) : token;
      if (entry.length === 0) return;
      if (entry[0] === 0x3a) this.status = String.fromCharCode(entry[entry.length - 1]!);
      else if (entry.includes(0x09)) this.takeCounts(entry);
      else this.takeHeader(entry.toString("utf8"));
    }
  }

  private takeHeader(text: string): void {
    if (this.header.push(text) < HEADER_TOKENS) return;
    const [sha, parents, email, at, subject] = this.header as [string, string, string, string, string];
    this.header = [];
    if (this.commit !== undefined) this.done.push(this.commit);
    this.commit = {
      sha,
      parents: parents === "" ? [] : parents.split(" "),
      email,
      at: Math.min(Math.max(Math.trunc(Number(at)) || 0, MIN_SECONDS), MAX_SECONDS),
      subject,
      changes: new Map(),
    };
  }

  private takeCounts(entry: Buffer): void {
    const first = entry.indexOf(0x09);
    const second = entry.indexOf(0x09, first + 1);
    const change = this.commit?.changes.get(textOf(entry.subarray(second + 1)));
    // Binary files have "-" for both.
    if (change === undefined || entry[0] === 0x2d) return;
    change.added = Number(entry.toString("latin1", 0, first));
    change.deleted = Number(entry.toString("latin1", first + 1, second));
  }
}
