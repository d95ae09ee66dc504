import type { ChangeEvent, Operation } from "./event.js";
import type { LendLimits, Outbox, Settlement } from "./outbox.js";

/** What is needed of a Pool of `pg`. */
export interface PostgresPool {
  connect(): Promise<PostgresClient>;
}

export interface PostgresClient {
  query(text: string, values?: unknown[]): Promise<{ rows: Record<string, unknown>[] }>;
  on(event: "error", listener: (error: Error) => void): unknown;
  off(event: "error", listener: (error: Error) => void): unknown;
  /** True: the connection is not used again. */
  release(destroy?: boolean): void;
}

/** How far the outbox can be shared. */
const SHARDS = 16;

/**
 * The tables and functions of an outbox, for a migration; they are made in the first schema of the search path, and may
 * be made again. A service calls tributary_publish in the transaction that makes the change:
 *
 *   select tributary_publish('acme', 'scm.v1.File', 'README.md', 'updated', $1)
 *
 * It gives the event's version, one more than the entity's last. The row of tributary_outbox_versions stays locked
 * until the transaction ends, so that versions and ids of an entity follow the order of commits, though ids as a whole
 * do not. Versions outlive a deletion: an entity that comes back goes on after its tombstone.
 */
export const POSTGRES_OUTBOX_SQL = `
create table if not exists tributary_outbox (
  id bigint generated always as identity primary key,
  shard smallint not null,
  tenant_id text not null,
  entity_type text not null,
  entity_id text not null,
  operation text not null check (operation in ('created', 'updated', 'deleted')),
  version bigint not null,
  occurred_at timestamptz not null check (isfinite(occurred_at)),
  payload bytea check ((payload is null) = (operation = 'deleted')),
  attributes jsonb,
  event_id text
);
create index if not exists tributary_outbox_shard on tributary_outbox (shard, id);
create table if not exists tributary_outbox_versions (
  tenant_id text not null,
  entity_type text not null,
  entity_id text not null,
  version bigint not null,
  primary key (tenant_id, entity_type, entity_id)
);
create table if not exists tributary_outbox_rejected (
  id bigint primary key,
  shard smallint not null,
  tenant_id text not null,
  entity_type text not null,
  entity_id text not null,
  operation text not null,
  version bigint not null,
  occurred_at timestamptz not null,
  payload bytea,
  attributes jsonb,
  event_id text,
  code text not null,
  message text not null,
  rejected_at timestamptz not null default now()
);
create or replace function tributary_publish(
  tenant text, type text, entity text, operation text, payload bytea,
  occurred timestamptz default clock_timestamp(), attributes jsonb default null, event text default null
) returns bigint language plpgsql as $$
declare
  upcoming bigint;
begin
  insert into tributary_outbox_versions as known values (tenant, type, entity, 1)
    on conflict (tenant_id, entity_type, entity_id) do update set version = known.version + 1
    returning known.version into upcoming;
  insert into tributary_outbox
    (shard, tenant_id, entity_type, entity_id, operation, version, occurred_at, payload, attributes, event_id)
    values (abs(hashtextextended(tenant || '/' || type || '/' || entity, 0) % ${SHARDS}), tenant, type, entity,
      tributary_publish.operation, upcoming, occurred, tributary_publish.payload, tributary_publish.attributes, event);
  return upcoming;
end $$;
create or replace function tributary_requeue(rejected bigint) returns boolean language plpgsql as $$
begin
  with back as (delete from tributary_outbox_rejected where id = rejected returning *)
  insert into tributary_outbox
    (shard, tenant_id, entity_type, entity_id, operation, version, occurred_at, payload, attributes, event_id)
    select shard, tenant_id, entity_type, entity_id, operation, version, occurred_at, payload, attributes, event_id
    from back;
  return found;
end $$;
`;

/** Names the locks of this outbox among the advisory locks of the database: those of two schemas differ. */
const LOCK = "'tributary_outbox'::regclass::oid::int";

const LOCK_ONE = `
select shard from generate_series(0, ${SHARDS - 1}) as shard
where exists (select from tributary_outbox waiting where waiting.shard = shard.shard)
  and not shard.shard = any($1)`;

const READ = `
select * from (
  select id, tenant_id, entity_type, entity_id, operation, version::text, payload, attributes, event_id,
    floor(extract(epoch from occurred_at))::text as seconds,
    (extract(microseconds from occurred_at)::bigint % 1000000 * 1000)::int as nanos,
    sum(coalesce(octet_length(payload), 0)) over (order by id) as bytes, row_number() over (order by id) as nth
  from (select * from tributary_outbox where shard = $1 order by id limit $2) as oldest
) as sized where nth = 1 or bytes <= $3 order by id`;

const REJECT = `
with refused as (
  select * from unnest($1::bigint[], $2::text[], $3::text[]) as refused (id, code, message)
), gone as (
  delete from tributary_outbox using refused where tributary_outbox.id = refused.id returning tributary_outbox.*
)
insert into tributary_outbox_rejected
select gone.*, refused.code, refused.message from gone join refused using (id)`;

/**
 * An outbox of Postgres 13 or later. A loan is one transaction that holds the advisory lock of one of 16 shards of
 * entities: nobody else reads the shard meanwhile, and whoever dies lets go of it with the connection. No offset is
 * kept: what is delivered is deleted with the commit, so that a row which commits late is found all the same. Between
 * its statements the transaction holds no snapshot and keeps vacuum from nothing.
 */
export class PostgresOutbox implements Outbox {
  private readonly pool: PostgresPool;
  private readonly patienceMs: number;

  /** `patienceMs`: how long a loan may take before the server ends it, as its borrower seems to be frozen. */
  constructor(pool: PostgresPool, { patienceMs = 300_000 }: { readonly patienceMs?: number } = {}) {
    this.pool = pool;
    this.patienceMs = patienceMs;
  }

  async lend(
    limits: LendLimits,
    publish: (events: readonly ChangeEvent[]) => Promise<readonly Settlement[]>,
  ): Promise<number> {
    const client = await this.pool.connect();
    // A connection that breaks while nothing is asked of it says so here; the next statement fails.
    const broken = () => undefined;
    client.on("error", broken);
    let sound = false;
    try {
      await client.query("begin isolation level read committed");
      await client.query(`set local idle_in_transaction_session_timeout = ${Math.ceil(this.patienceMs)}`);
      const rows = await this.borrow(client, limits);
      if (rows.length > 0) await settle(client, rows, await publish(rows.map(eventOf)));
      await client.query("commit");
      sound = true;
      return rows.length;
    } finally {
      client.off("error", broken);
      client.release(!sound);
    }
  }

  /** The oldest rows of a shard that nobody else holds. Each statement sees what was committed before it. */
  private async borrow(client: PostgresClient, limits: LendLimits): Promise<readonly Row[]> {
    const tried: number[] = [];
    for (;;) {
      const { rows: waiting } = await client.query(LOCK_ONE, [tried]);
      const shards = waiting.map(({ shard }) => Number(shard));
      if (shards.length === 0) return [];
      const shard = shards[Math.floor(Math.random() * shards.length)]!;
      tried.push(shard);
      const lock = await client.query(`select pg_try_advisory_xact_lock(${LOCK}, $1) as held`, [shard]);
      if (lock.rows[0]?.held !== true) continue;
      const { rows } = await client.query(READ, [shard, limits.events, limits.bytes]);
      if (rows.length > 0) return rows as unknown as Row[];
    }
  }
}

interface Row {
  readonly id: string;
  readonly tenant_id: string;
  readonly entity_type: string;
  readonly entity_id: string;
  readonly operation: Operation;
  readonly version: string;
  readonly payload: Uint8Array | null;
  readonly attributes: Readonly<Record<string, string>> | null;
  readonly event_id: string | null;
  readonly seconds: string;
  readonly nanos: number;
}

const eventOf = (row: Row): ChangeEvent => ({
  tenantId: row.tenant_id,
  entityType: row.entity_type,
  entityId: row.entity_id,
  operation: row.operation,
  version: row.version,
  occurredAt: { seconds: BigInt(row.seconds), nanos: row.nanos },
  ...(row.payload === null ? {} : { payload: row.payload }),
  ...(row.attributes === null ? {} : { attributes: row.attributes }),
  ...(row.event_id === null ? {} : { eventId: row.event_id }),
});

async function settle(
  client: PostgresClient,
  rows: readonly Row[],
  settlements: readonly Settlement[],
): Promise<void> {
  const delivered: string[] = [];
  const rejected: { readonly id: string; readonly code: string; readonly message: string }[] = [];
  for (const [i, { id }] of rows.entries()) {
    const settlement = settlements[i];
    if (settlement === "delivered") delivered.push(id);
    else if (typeof settlement === "object") {
      rejected.push({ id, code: settlement.code, message: settlement.message });
    }
  }
  if (delivered.length > 0) {
    await client.query("delete from tributary_outbox where id = any($1::bigint[])", [delivered]);
  }
  if (rejected.length > 0) {
    const columns = (["id", "code", "message"] as const).map((name) => rejected.map((each) => each[name]));
    await client.query(REJECT, columns);
  }
}
