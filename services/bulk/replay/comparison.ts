import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../../base/duckdb.js";
import type { DeltaTable } from "../../table/delta-table.js";
import { mayHoldTenant, portionsOf, withFiles, withFilesScan } from "../../table/scan.js";
import { PARTITION_COLUMN } from "../../table/state.js";
import type { TableSnapshot } from "../../table/types.js";
import { ORDER_COLUMNS } from "../../table/upsert.js";
import { ofTenant, rankSql } from "../verify/digests.js";

/** How a table of a model differs from what raw makes of its events now. */
export interface Difference {
  /** Live rows. */
  readonly served: number;
  readonly rebuilt: number;
  /** Entities whose row is not served; whose row should not be; whose row is another; that are remembered as deleted otherwise. */
  readonly missing: number;
  readonly extra: number;
  readonly changed: number;
  readonly tombstones: number;
  /** Columns that only one of both has, or of another type: they are not compared. */
  readonly apart: readonly string[];
  /** Tenants with a difference, those with the most first, so many of them at most. */
  readonly tenants: readonly TenantDifference[];
  /** Some of the entities, in order. */
  readonly keys: readonly KeyDifference[];
}

export type Kind = "missing" | "extra" | "changed" | "tombstone";

export interface TenantDifference {
  readonly tenant: string;
  readonly missing: number;
  readonly extra: number;
  readonly changed: number;
  readonly tombstones: number;
}

export interface KeyDifference {
  readonly tenant: string;
  readonly entityId: string;
  readonly kind: Kind;
  /** Of a changed row: which differ. Values are not told. */
  readonly columns: readonly string[];
}

/** One of two tables that are compared. */
interface Party {
  readonly name: "served" | "rebuilt";
  readonly table: DeltaTable;
  readonly snapshot: TableSnapshot;
}

export interface ComparisonOptions {
  readonly tenant?: string;
  /**
   * The second table is of some events alone: what it has must be served, or something greater; what else is served
   * says nothing.
   */
  readonly partial: boolean;
}

/** About so many rows share a digest. */
const BUCKET_ROWS = 10_000;
const MOST_BUCKETS = 65_536;
/** Rows of each table whose keys are held at once. */
const HELD_ROWS = 2_000_000;
const MOST_TENANTS = 1000;
const KEY = "tenant_id, entity_id";
const BUCKET = (count: number) => `(hash(${KEY}) % ${count})::INTEGER`;

/**
 * Compares a served table with one that was rebuilt, on a connection of its own. Digests of rows by buckets of keys are
 * compared first, so that only buckets that differ are looked into: memory is that of some buckets, whatever the tables
 * hold. Both are to stand at the same place of their streams.
 */
export class Comparison {
  private counts = { served: 0, rebuilt: 0 };

  constructor(
    private readonly connection: DuckDBConnection,
    private readonly options: ComparisonOptions,
  ) {}

  /** Compares all of them. */
  async look(served: DeltaTable, rebuilt: DeltaTable): Promise<void> {
    const parties = partiesOf(served, rebuilt);
    const columns = commonColumns(parties);
    await this.run("CREATE OR REPLACE TEMP TABLE diffs (tenant_id VARCHAR, entity_id VARCHAR, kind VARCHAR)");
    this.counts = { served: await this.count(parties[0]), rebuilt: await this.count(parties[1]) };
    if (this.options.partial) {
      await this.keysOf(parties[1], "wanted");
      await this.compareWithin(parties, columns, "wanted");
      return;
    }
    for (const buckets of await this.unlike(parties, columns)) {
      for (const party of parties) await this.states(party, columns, inBuckets(buckets));
      await this.joinStates();
    }
    await this.compareGraves(parties);
  }

  /** Forgets differences that are none any more: of tables that have gone on meanwhile. */
  async lookAgain(served: DeltaTable, rebuilt: DeltaTable): Promise<void> {
    const parties = partiesOf(served, rebuilt);
    await this.run(
      `CREATE OR REPLACE TEMP TABLE wanted AS SELECT DISTINCT ${KEY} FROM diffs; DELETE FROM diffs`,
    );
    await this.compareWithin(parties, commonColumns(parties), "wanted");
  }

  /** Entities that differ. */
  async differing(): Promise<number> {
    const [[count]] = (await rowsOf(this.connection, "SELECT count(*) FROM diffs")) as [[bigint]];
    return Number(count);
  }

  private async compareWithin(
    parties: readonly [Party, Party],
    columns: readonly string[],
    keys: string,
  ): Promise<void> {
    for (const party of parties) await this.states(party, columns, { where: "true", within: keys });
    if (this.options.partial) {
      for (const party of parties) await this.graves(party, keys);
      await this.joinParts();
      return;
    }
    await this.joinStates();
    await this.compareGraves(parties, keys);
  }

  /** Of what some events say: something greater may stand, and that may be a tombstone. */
  private async joinParts(): Promise<void> {
    const all = (name: string) =>
      `(SELECT ${KEY}, place, digest FROM ${name}_rows UNION ALL SELECT ${KEY}, place, NULL FROM ${name}_graves)`;
    await this.run(
      `INSERT INTO diffs SELECT ${KEY},
         CASE WHEN a.digest IS NULL AND b.digest IS NULL THEN 'tombstone' WHEN a.digest IS NULL THEN 'missing'
           WHEN b.digest IS NULL THEN 'extra' ELSE 'changed' END
       FROM ${all("rebuilt")} b LEFT JOIN ${all("served")} a USING (${KEY})
       WHERE a.place IS NULL OR a.place < b.place OR (a.place = b.place AND a.digest IS DISTINCT FROM b.digest)`,
    );
  }

  /** Live rows of `which` as (key, order, hash), in a table named for the party. */
  private async states(
    party: Party,
    columns: readonly string[],
    which: { readonly where: string; readonly within?: string },
  ): Promise<void> {
    const within = which.within === undefined ? "" : `SEMI JOIN ${which.within} USING (${KEY})`;
    const select = (sql: string) =>
      `SELECT ${KEY}, ${rankSql("t")} AS place, hash(${columns.map(identifier).join(", ")}) AS digest
       FROM (${sql}) t ${within} WHERE ${which.where}`;
    await this.gather(`${party.name}_rows`, party, select);
  }

  /** Runs `select` over the party's live rows, portion by portion, into a temporary table. */
  private async gather(name: string, party: Party, select: (sql: string) => string): Promise<void> {
    await withFilesScan(party.table, party.snapshot, [], {}, (sql) =>
      this.run(`CREATE OR REPLACE TEMP TABLE ${name} AS ${select(sql)}`),
    );
    await this.eachPortion(party, (sql) => this.run(`INSERT INTO ${name} ${select(sql)}`));
  }

  private async eachPortion({ table, snapshot }: Party, use: (sql: string) => Promise<void>): Promise<void> {
    const { tenant } = this.options;
    const live = snapshot.files.filter(
      (file) =>
        !file.tombstones &&
        file.maskedRows < file.rows &&
        (tenant === undefined || mayHoldTenant(file, tenant)),
    );
    const options = { where: ofTenant(tenant) };
    for (const portion of portionsOf(table, live))
      await withFilesScan(table, snapshot, portion, options, use);
  }

  private async count(party: Party): Promise<number> {
    await this.gather("counted", party, (sql) => `SELECT count(*) AS n FROM (${sql})`);
    const [[sum]] = (await rowsOf(this.connection, "SELECT coalesce(sum(n), 0)::BIGINT FROM counted")) as [
      [bigint],
    ];
    return Number(sum);
  }

  /** The buckets whose rows are not the same in both, in groups of which each is held at once. */
  private async unlike(parties: readonly [Party, Party], columns: readonly string[]): Promise<Buckets[]> {
    const most = Math.max(this.counts.served, this.counts.rebuilt);
    const count = Math.min(MOST_BUCKETS, Math.ceil(most / BUCKET_ROWS) + 1);
    const all = columns.map(identifier).join(", ");
    for (const party of parties) {
      await this.gather(
        `${party.name}_digests`,
        party,
        (sql) =>
          `SELECT ${BUCKET(count)} AS bucket, count(*) AS n, sum(hash(${all})) AS digest FROM (${sql}) GROUP BY ALL`,
      );
    }
    const sums = (name: string) =>
      `(SELECT bucket, sum(n)::BIGINT AS n, sum(digest) AS digest FROM ${name}_digests GROUP BY bucket)`;
    const rows = await rowsOf(
      this.connection,
      `SELECT bucket, greatest(coalesce(a.n, 0), coalesce(b.n, 0))
       FROM ${sums("served")} a FULL JOIN ${sums("rebuilt")} b USING (bucket)
       WHERE a.n IS DISTINCT FROM b.n OR a.digest IS DISTINCT FROM b.digest ORDER BY bucket`,
    );
    const groups: Buckets[] = [];
    let held = Number.POSITIVE_INFINITY;
    for (const [bucket, n] of rows) {
      held += Number(n);
      if (held > HELD_ROWS) {
        groups.push({ count, numbers: [] });
        held = Number(n);
      }
      groups.at(-1)!.numbers.push(Number(bucket));
    }
    return groups;
  }

  private async joinStates(): Promise<void> {
    await this.run(
      `INSERT INTO diffs SELECT ${KEY},
         CASE WHEN a.digest IS NULL THEN 'missing' WHEN b.digest IS NULL THEN 'extra' ELSE 'changed' END
       FROM served_rows a FULL JOIN rebuilt_rows b USING (${KEY}) WHERE a.digest IS DISTINCT FROM b.digest`,
    );
  }

  /** Keys of all rows and tombstones of a party. */
  private async keysOf(party: Party, name: string): Promise<void> {
    await this.gather(name, party, (sql) => `SELECT ${KEY} FROM (${sql})`);
    await this.graves(party);
    await this.run(`INSERT INTO ${name} SELECT ${KEY} FROM ${party.name}_graves`);
  }

  /** What the table remembers as deleted: the greatest tombstone of an entity that has no row. */
  private async graves(party: Party, within?: string): Promise<void> {
    const { table, snapshot, name } = party;
    const { tenant } = this.options;
    const columns = ORDER_COLUMNS.join(", ");
    const conditions = [
      ofTenant(tenant),
      ...(within === undefined ? [] : [`(${KEY}) IN (SELECT (${KEY}) FROM ${within})`]),
    ];
    const where = `WHERE ${conditions.join(" AND ")}`;
    await this.run(
      `CREATE OR REPLACE TEMP TABLE ${name}_all_graves AS SELECT NULL::VARCHAR AS tenant_id, NULL::VARCHAR AS entity_id,
         NULL::BIGINT AS _tributary_version, NULL::TINYINT AS _tributary_operation, NULL::BIGINT AS _tributary_hash,
         NULL::TIMESTAMPTZ AS _tributary_occurred_at WHERE false`,
    );
    const files = snapshot.files.filter(
      (file) => file.tombstones && (tenant === undefined || mayHoldTenant(file, tenant)),
    );
    for (const portion of portionsOf(table, files)) {
      await withFiles(table, portion, (paths) =>
        this.run(
          `INSERT INTO ${name}_all_graves SELECT ${KEY}, ${columns}
           FROM read_parquet([${paths.map(literal).join(", ")}], hive_partitioning=false) ${where}`,
        ),
      );
    }
    await this.gather(
      `${name}_risen`,
      party,
      (sql) => `SELECT ${KEY} FROM (${sql}) SEMI JOIN ${name}_all_graves USING (${KEY})`,
    );
    await this.run(
      `CREATE OR REPLACE TEMP TABLE ${name}_graves AS SELECT ${KEY}, ${rankSql("g")} AS place
       FROM ${name}_all_graves g ANTI JOIN ${name}_risen USING (${KEY})
       QUALIFY row_number() OVER (PARTITION BY ${KEY} ORDER BY place DESC) = 1`,
    );
  }

  private async compareGraves(parties: readonly [Party, Party], within?: string): Promise<void> {
    for (const party of parties) await this.graves(party, within);
    // One whose row is missing, or there for nothing, is told already.
    await this.run(
      `INSERT INTO diffs SELECT g.* FROM (
         SELECT ${KEY}, 'tombstone' AS kind FROM served_graves a FULL JOIN rebuilt_graves b USING (${KEY})
         WHERE a.place IS DISTINCT FROM b.place
       ) g ANTI JOIN diffs d USING (${KEY})`,
    );
  }

  /** What was found, by the newest look. */
  async difference(served: DeltaTable, rebuilt: DeltaTable, limit: number): Promise<Difference> {
    const parties = partiesOf(served, rebuilt);
    const kinds = (kind: Kind) => `count(*) FILTER (kind = '${kind}')`;
    const counted = `${kinds("missing")}, ${kinds("extra")}, ${kinds("changed")}, ${kinds("tombstone")}`;
    const [[missing, extra, changed, tombstones] = []] = await rowsOf(
      this.connection,
      `SELECT ${counted} FROM diffs`,
    );
    const tenants = await rowsOf(
      this.connection,
      `SELECT tenant_id, ${counted} FROM diffs GROUP BY tenant_id ORDER BY count(*) DESC, tenant_id LIMIT ${MOST_TENANTS}`,
    );
    return {
      ...this.counts,
      missing: Number(missing),
      extra: Number(extra),
      changed: Number(changed),
      tombstones: Number(tombstones),
      apart: apartColumns(parties),
      tenants: tenants.map(([tenant, ...numbers]) => ({
        tenant: String(tenant),
        missing: Number(numbers[0]),
        extra: Number(numbers[1]),
        changed: Number(numbers[2]),
        tombstones: Number(numbers[3]),
      })),
      keys: await this.keys(parties, limit),
    };
  }

  private async keys(parties: readonly [Party, Party], limit: number): Promise<KeyDifference[]> {
    await this.run(
      `CREATE OR REPLACE TEMP TABLE shown AS SELECT * FROM diffs ORDER BY ${KEY} LIMIT ${limit}`,
    );
    const columns = commonColumns(parties);
    for (const party of parties) {
      await this.gather(
        `${party.name}_shown`,
        party,
        (sql) =>
          `SELECT ${columns.map(identifier).join(", ")} FROM (${sql}) SEMI JOIN (FROM shown WHERE kind = 'changed') USING (${KEY})`,
      );
    }
    const unlike = columns
      .filter((name) => name !== "tenant_id" && name !== "entity_id")
      .map(
        (name) =>
          `CASE WHEN a.${identifier(name)} IS DISTINCT FROM b.${identifier(name)} THEN ${literal(name)} END`,
      );
    const rows = await rowsOf(
      this.connection,
      `SELECT ${KEY}, kind, CASE WHEN kind = 'changed' THEN to_json(list_filter([${unlike.join(", ")}], lambda x: x IS NOT NULL))::VARCHAR ELSE '[]' END
       FROM shown LEFT JOIN served_shown a USING (${KEY}) LEFT JOIN rebuilt_shown b USING (${KEY}) ORDER BY ${KEY}`,
    );
    return rows.map(([tenant, entityId, kind, names]) => ({
      tenant: String(tenant),
      entityId: String(entityId),
      kind: String(kind) as Kind,
      columns: JSON.parse(String(names)) as string[],
    }));
  }

  private async run(sql: string): Promise<void> {
    await this.connection.run(sql);
  }
}

interface Buckets {
  readonly count: number;
  readonly numbers: number[];
}

const inBuckets = ({ count, numbers }: Buckets) => ({
  where: `${BUCKET(count)} IN (${numbers.join(", ")})`,
});

const partiesOf = (served: DeltaTable, rebuilt: DeltaTable): readonly [Party, Party] => [
  { name: "served", table: served, snapshot: served.snapshot },
  { name: "rebuilt", table: rebuilt, snapshot: rebuilt.snapshot },
];

const stored = ({ snapshot }: Party): Map<string, string> =>
  new Map(
    snapshot.columns.filter(({ name }) => name !== PARTITION_COLUMN).map(({ name, type }) => [name, type]),
  );

function commonColumns([served, rebuilt]: readonly [Party, Party]): string[] {
  const others = stored(rebuilt);
  return [...stored(served)].filter(([name, type]) => others.get(name) === type).map(([name]) => name);
}

function apartColumns(parties: readonly [Party, Party]): string[] {
  const common = new Set(commonColumns(parties));
  return [...new Set(parties.flatMap((party) => [...stored(party).keys()]))].filter(
    (name) => !common.has(name),
  );
}
