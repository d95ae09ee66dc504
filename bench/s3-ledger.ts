import { textTable } from "../services/main/terminal/text-table.js";

/** List prices of S3 Standard in us-east-1, of 2025-11, in dollars a request. Deletes are free; bytes are not counted. */
const DOLLARS = { write: 0.005 / 1_000, read: 0.0004 / 1_000 } as const;

const COMMIT = /^(.+)\/_delta_log\/\d{20}\.json$/;

export interface Committed {
  readonly root: string;
  /** When the answer went back, by `performance.now()`. */
  readonly at: number;
  /** Domain → configuration, as far as the commit sets them. */
  readonly domains: ReadonlyMap<string, string>;
}

interface Costs {
  commits: number;
  lost: number;
  writes: number;
  reads: number;
  deletes: number;
}

/** What a bucket was asked, by table. */
export class S3Ledger {
  private bucket = "";
  private readonly costs = new Map<string, Costs>();
  /** Called for each commit of a table. */
  committed: (commit: Committed) => void = () => undefined;

  constructor(private readonly prefix: string) {}

  begin(bucket: string): void {
    this.bucket = bucket;
    this.restart();
  }

  /** Forgets what was asked so far. */
  restart(): void {
    this.costs.clear();
  }

  take({ method, path }: { readonly method: string; readonly path: string }, body: Buffer, status: number) {
    const url = new URL(path, "http://s3");
    const within = `/${this.bucket}/${this.prefix}/`;
    if (!url.pathname.startsWith(`/${this.bucket}`)) return;
    const isList = method === "GET" && url.searchParams.has("list-type");
    const key = isList
      ? (url.searchParams.get("prefix") ?? "").slice(this.prefix.length + 1)
      : decodeURIComponent(url.pathname.slice(within.length));
    const costs = this.of(tableOf(key));
    if (method === "DELETE" || url.searchParams.has("delete")) costs.deletes++;
    else if (isList || method === "PUT" || method === "POST") costs.writes++;
    else costs.reads++;
    const root = method === "PUT" ? COMMIT.exec(key)?.[1] : undefined;
    if (root === undefined) return;
    if (status === 200) {
      costs.commits++;
      this.committed({ root, at: performance.now(), domains: domainsOf(body) });
    } else costs.lost++;
  }

  private of(table: string): Costs {
    let costs = this.costs.get(table);
    if (costs === undefined) {
      costs = { commits: 0, lost: 0, writes: 0, reads: 0, deletes: 0 };
      this.costs.set(table, costs);
    }
    return costs;
  }

  /** Commits of tables of a layer, and requests a commit. */
  perCommit(layer: "raw" | "refined") {
    const of = [...this.costs].filter(([table]) => table.startsWith(`${layer}/`)).map(([, costs]) => costs);
    const commits = of.reduce((sum, { commits }) => sum + commits, 0);
    const lost = of.reduce((sum, { lost }) => sum + lost, 0);
    return { commits, lost, requests: of.reduce((sum, one) => sum + requestsOf(one), 0) / commits };
  }

  /** Requests and dollars a million events. */
  perMillion(events: number) {
    const all = [...this.costs.values()];
    const dollars = all.reduce(
      (sum, { writes, reads }) => sum + writes * DOLLARS.write + reads * DOLLARS.read,
      0,
    );
    const requests = all.reduce((sum, one) => sum + requestsOf(one), 0);
    return { requests: (requests * 1e6) / events, dollars: (dollars * 1e6) / events };
  }

  table(): string {
    return textTable(
      ["", "commits", "lost", "PUT and LIST", "GET", "deletes", "requests/commit"],
      [...this.costs]
        .sort()
        .map(([table, costs]) => [
          table,
          costs.commits,
          costs.lost,
          costs.writes,
          costs.reads,
          costs.deletes,
          costs.commits === 0 ? "" : (requestsOf(costs) / costs.commits).toFixed(2),
        ]),
    );
  }
}

const requestsOf = ({ writes, reads, deletes }: Costs): number => writes + reads + deletes;

/** raw/<type>, refined/<source>/<model>; the folder of what is no table's. */
function tableOf(key: string): string {
  const parts = key.split("/");
  return parts.slice(0, parts[0] === "raw" ? 2 : parts[0] === "refined" ? 3 : 1).join("/") || "(lists)";
}

function domainsOf(body: Buffer): Map<string, string> {
  const domains = new Map<string, string>();
  for (const line of body.toString().split("\n")) {
    const at = line.indexOf('{"domainMetadata"');
    if (at < 0) continue;
    const { domainMetadata } = JSON.parse(line) as {
      domainMetadata: { domain: string; configuration: string };
    };
    domains.set(domainMetadata.domain, domainMetadata.configuration);
  }
  return domains;
}
