import { printable } from "../../base/in-words.js";
import { encodeRequest } from "../../contracts/encode-event.js";
import type { ProtoRegistry } from "../../contracts/registry.js";
import type { EventBody } from "../workload/generator.js";
import { type GitCommit, GitHistory } from "../workload/git-events.js";
import { type GitRepository, listTree, tenantOf } from "../workload/git-repository.js";
import {
  type Answer,
  type Ask,
  bigintOf,
  type Comparison,
  differences,
  type Scenario,
} from "./demo-scenario.js";

const BODY_EVENTS = 500;
const BODY_BYTES = 1024 * 1024;
/** Paths asked for at once. */
const PAGE = 20_000;
const SHOWN = 5;

/** The history of a git repository; git itself says what must come out. */
export class GitScenario implements Scenario {
  readonly domain = "scm";
  readonly source: string;
  readonly tenants: readonly [string];
  readonly example = "select extension, count(*) as files from files group by 1 order by 2 desc limit 5";
  private readonly repository: GitRepository;
  private readonly history: GitHistory;
  private commits = 0;
  private lastCommit: GitCommit | undefined;

  constructor(repository: GitRepository, registry: ProtoRegistry) {
    const tenant = tenantOf(repository.name);
    this.repository = repository;
    this.history = new GitHistory(repository, { tenant, registry });
    this.tenants = [tenant];
    this.source = `the git history of ${printable(repository.name)} (${repository.commitCount} commits)`;
  }

  async *bodies(made: (fraction: number) => void): AsyncGenerator<EventBody> {
    let events: Buffer[] = [];
    let bytes = 0;
    for await (const commit of this.history.commits()) {
      this.commits = commit.ordinal;
      made(commit.ordinal / this.repository.commitCount);
      // The newest commit waits, unless it is the only one.
      if (commit.ordinal > 1 && commit.ordinal === this.repository.commitCount) {
        this.lastCommit = commit;
        break;
      }
      for (const event of commit.events) {
        bytes += event.length;
        if (events.push(event) < BODY_EVENTS && bytes < BODY_BYTES) continue;
        yield { bytes: encodeRequest(events), count: events.length };
        events = [];
        bytes = 0;
      }
    }
    if (events.length > 0) yield { bytes: encodeRequest(events), count: events.length };
  }

  last(): EventBody | undefined {
    return (
      this.lastCommit && {
        bytes: encodeRequest(this.lastCommit.events),
        count: this.lastCommit.events.length,
      }
    );
  }

  async arrived(ask: Ask): Promise<boolean> {
    if (this.lastCommit === undefined) return this.settled(ask);
    return (await this.count(ask, "select count(*) from commits")) === this.commits - 1;
  }

  async settled(ask: Ask): Promise<boolean> {
    if ((await this.count(ask, "select count(*) from commits")) !== this.commits) return false;
    const [row] = await ask(
      this.tenants[0],
      "select count(*), sum(change_count), sum(lines_added), sum(lines_deleted) from files",
    );
    let [changes, added, deleted] = [0, 0, 0];
    for (const file of this.history.live.values()) {
      changes += file.changeCount;
      added += file.linesAdded;
      deleted += file.linesDeleted;
    }
    const expected = [this.history.live.size, changes, added, deleted];
    return expected.every((value, at) => bigintOf(row?.[at]) === BigInt(value));
  }

  async answers(ask: Ask): Promise<readonly Answer[]> {
    const [tenant] = this.tenants;
    const churn = await ask(
      tenant,
      `select case when directory = '' then '(root)' else split_part(directory, '/', 1) end as directory,
              count(*), sum(change_count) as changes, sum(lines_added), sum(lines_deleted)
       from files group by 1 order by changes desc, 1 limit ${SHOWN + 3}`,
    );
    const changed = await ask(
      tenant,
      `select path, change_count, lines_added, lines_deleted, strftime(modified_at, '%Y-%m-%d')
       from files order by change_count desc, path limit ${SHOWN}`,
    );
    return [
      {
        title: "Churn by directory",
        columns: ["directory", "files", "changes", "lines added", "lines deleted"],
        rows: churn,
      },
      {
        title: "Most changed files",
        columns: ["path", "changes", "lines added", "lines deleted", "last change"],
        rows: changed,
      },
      await this.deleted(ask),
    ];
  }

  /** Deleted files have no rows: git names them, and the table is asked whether they are really gone. */
  private async deleted(ask: Ask): Promise<Answer> {
    const { deleted } = this.history;
    const rows: unknown[][] = [];
    for (const [path, commit] of [...deleted].slice(-SHOWN).reverse()) {
      const left = await this.count(ask, `select count(*) from files where path = ${literal(path)}`);
      const day = new Date(commit.at * 1000).toISOString().slice(0, 10);
      rows.push([path, day, commit.subject, left]);
    }
    const title = `Deleted files, latest first (${deleted.size} in all)`;
    return { title, columns: ["path", "deleted", "by commit", "rows left"], rows };
  }

  async compare(ask: Ask): Promise<Comparison> {
    const expected = await listTree(this.repository);
    const found: string[] = [];
    for (;;) {
      const page = await ask(
        this.tenants[0],
        `select path from files order by entity_id limit ${PAGE} offset ${found.length}`,
      );
      for (const [path] of page) found.push(String(path));
      if (page.length < PAGE) break;
    }
    return {
      what: "live files with git ls-tree",
      expected: expected.length,
      found: found.length,
      differences: differences(expected, found),
    };
  }

  private async count(ask: Ask, sql: string): Promise<number> {
    const [row] = await ask(this.tenants[0], sql);
    return Number(row?.[0]);
  }
}

const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`;
