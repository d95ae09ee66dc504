import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { loadConfig } from "../services/base/config.js";
import { Duck, literal } from "../services/base/duckdb.js";
import { TextColumn } from "../services/columns/column-writers.js";
import { Feed } from "../services/columns/feed.js";
import { Envelope } from "../services/contracts/envelope.js";
import { PayloadDecoder } from "../services/contracts/payload-columns.js";
import { ProtoRegistry } from "../services/contracts/registry.js";
import { TrackerWorkload } from "../services/main/workload/generator.js";

export const ISSUE = "tracker.v1.Issue";
/** Rows that others repeat under other keys. */
const BASE_ROWS = 100_000;
const SUFFIXES = { none: "", gzip: ".gz", zstd: ".zst" } as const;

export interface ExportOrder {
  readonly folder: string;
  readonly rows: number;
  readonly fileRows: number;
  readonly format: "parquet" | "ndjson";
  /** Of NDJSON, `none` when not given; Parquet has its own. */
  readonly compression?: "none" | "gzip" | "zstd";
  readonly tenants: number;
  readonly eventBytes: number;
  readonly order: "key" | "random";
}

const registryOf = () => ProtoRegistry.load(loadConfig().protoDirs);

/** Names of the payload's columns, and the types that DuckDB has for them. */
export const exportColumns = (): [name: string, type: string][] =>
  new PayloadDecoder(registryOf().entityType(ISSUE)!).columns.map(({ name, type }) => [name, `${type}`]);

/** The row of number n has revision 1 + n modulo so many. */
export const REVISIONS = 7;

/**
 * Issues as a product's database would export them: payload columns beside customer, id and revision. The row of number
 * n is of customer `tenant-` and n divided by the rows of a tenant, and has an id that ends in n.
 */
export async function generateExport(order: ExportOrder): Promise<void> {
  const { folder, rows: total, fileRows, format, tenants, eventBytes, compression = "none" } = order;
  const [suffix, codec] =
    format === "parquet"
      ? ["parquet", "FORMAT parquet, COMPRESSION zstd"]
      : [`ndjson${SUFFIXES[compression]}`, `FORMAT json, COMPRESSION ${compression}`];
  const registry = registryOf();
  const decoder = new PayloadDecoder(registry.entityType(ISSUE)!);
  const events = issuesOf(registry, BASE_ROWS, eventBytes);
  const envelope = new Envelope();
  const duck = await Duck.create({ memoryBytes: 2 * 1024 ** 3 });
  const connection = await duck.connect();
  const id = new TextColumn();
  const feed = Feed.register(connection, "base_events", [
    { name: "entity", writer: id, nullable: false },
    ...decoder.columns,
  ]);
  feed.use({
    rows: events.length,
    fill: (start, rows) => {
      for (let row = 0; row < rows; row++) {
        const event = events[start + row]!;
        envelope.read(event, 0, event.length);
        id.set(row, event, envelope.idStart, envelope.idEnd);
        decoder.decode(event, envelope.payloadStart, envelope.payloadEnd, row);
      }
    },
  });
  await connection.run(
    "CREATE TEMP TABLE base AS SELECT row_number() OVER () - 1 AS n, * FROM base_events()",
  );
  mkdirSync(folder, { recursive: true });
  const perTenant = Math.ceil(total / tenants);
  for (let first = 0, file = 0; first < total; first += fileRows, file++) {
    const rows = Math.min(fileRows, total - first);
    // A permutation of the row numbers: multiplied by a prime that does not divide their count.
    const number = order.order === "key" ? "i" : `((i::HUGEINT * 1000003) % ${total})::BIGINT`;
    const select = `SELECT printf('tenant-%04d', number // ${perTenant}) AS customer, printf('%s-%09d', project_key, number) AS id,
        1 + number % ${REVISIONS} AS rev, b.* EXCLUDE (n, entity)
      FROM (SELECT i, ${number} AS number FROM range(${first}, ${first + rows}) t(i)) JOIN base b ON b.n = number % ${BASE_ROWS}
      ORDER BY ${order.order === "key" ? "customer, id" : "i"}`;
    const path = join(folder, `part-${String(file).padStart(4, "0")}.${suffix}`);
    await connection.run(`COPY (${select}) TO ${literal(path)} (${codec})`);
  }
  connection.closeSync();
  duck.close();
}

/** Events about issues, created or updated, of the generator's. */
export function issuesOf(registry: ProtoRegistry, count: number, eventBytes: number): Buffer[] {
  const events: Buffer[] = [];
  const envelope = new Envelope();
  const workload = { seed: 7, tenants: 50, entities: 1e6, events: Math.max(count * 2, 1000), eventBytes };
  for (const event of new TrackerWorkload(registry, workload).events()) {
    envelope.read(event, 0, event.length);
    if (envelope.entityType() === ISSUE && envelope.payloadStart >= 0) events.push(event);
    if (events.length === count) break;
  }
  return events;
}
