/**
 * Exports a table of Postgres for `tributary bootstrap`: all its rows as they were at one moment, each with the version
 * that its last event of the outbox had at that moment. README.md says how the hand-over goes.
 *
 *   node export.mjs --table issues --type tracker.v1.Issue --tenant t.tenant --id t.key --out /exports/issues
 *
 * The database is the one that --url, DATABASE_URL or the PG* variables name.
 */
import { createHash } from "node:crypto";
import { createWriteStream, existsSync } from "node:fs";
import { mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { parseArgs } from "node:util";
import { createGzip } from "node:zlib";
import pg from "pg";

const BLOCK = 8192;
/** About so much comes at once from each connection. */
const FETCH_BYTES = 4 * 1024 * 1024;
const MOST_ROWS = 20_000;
const TOLD_EVERY_MS = 1_000;

const OPTIONS = {
  table: { type: "string" },
  type: { type: "string" },
  tenant: { type: "string" },
  id: { type: "string" },
  version: { type: "string" },
  occurred: { type: "string" },
  where: { type: "string" },
  out: { type: "string" },
  url: { type: "string" },
  jobs: { type: "string", default: "2" },
  "part-mb": { type: "string", default: "256" },
  help: { type: "boolean", default: false },
};

const USAGE = `node export.mjs --table NAME --type MESSAGE --tenant SQL --id SQL --out FOLDER
  --table     schema.table, or a view
  --type      the entity type of the outbox's events, e.g. tracker.v1.Issue
  --tenant    SQL for the tenant's id; the row is t
  --id        SQL for the entity's id
  --version   SQL for the version; by default the outbox's, 0 where the entity has had no event
  --occurred  SQL for when it last changed (timestamptz)
  --where     SQL: which rows; all by default
  --out       what is not there yet; it appears when the export is whole
  --url       postgres://…; else DATABASE_URL or the PG* variables
  --jobs      connections that read (2)
  --part-mb   megabytes of the table a file (256)`;

/** What the operator got wrong, or what is not as it has to be: told without a stack. */
class Refusal extends Error {}

async function main() {
  const { values } = parseArgs({ options: OPTIONS });
  if (values.help) {
    console.log(USAGE);
    return;
  }
  for (const name of ["table", "type", "tenant", "id", "out"]) {
    if (!values[name]) throw new Refusal(`expected --${name}\n${USAGE}`);
  }
  const [jobs, megabytes] = [values.jobs, values["part-mb"]].map(Number);
  if (!(jobs >= 1 && megabytes >= 1)) throw new Refusal("--jobs, --part-mb: expected numbers from 1");
  const connectionString = values.url ?? process.env.DATABASE_URL;
  const config = connectionString === undefined ? {} : { connectionString };
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop.abort());

  const out = resolve(values.out);
  // Hidden from whoever lists exports, and on the same disk, so that it appears as a whole.
  const unfinished = join(dirname(out), `.${basename(out)}.unfinished`);
  const first = await connected(config);
  try {
    await requireAlone(first, out);
    if (existsSync(out)) throw new Refusal("--out: expected a folder that is not there yet");
    // Of an export that was killed: its snapshot is gone with it.
    await rm(unfinished, { recursive: true, force: true });
    await mkdir(unfinished, { recursive: true });
    try {
      const snapshot = await takeSnapshot(first, values);
      const manifest = await exportRows(
        config,
        snapshot,
        { jobs, bytes: megabytes * 2 ** 20 },
        unfinished,
        stop.signal,
      );
      await keep(join(unfinished, "_mapping.json"), mappingOf(values));
      await keep(join(unfinished, "_manifest.json"), { ...manifest, table: values.table, type: values.type });
      await synced(unfinished);
      await rename(unfinished, out);
      await synced(dirname(out));
      console.log(JSON.stringify({ out, rows: manifest.rows, parts: manifest.parts.length }));
    } catch (error) {
      await rm(unfinished, { recursive: true, force: true });
      throw error;
    }
  } finally {
    await first.end();
  }
}

async function connected(config) {
  const client = new pg.Client({ ...config, application_name: "tributary export" });
  // The statement that runs, or the next one, fails by it.
  client.on("error", () => undefined);
  await client.connect();
  // A snapshot lives as long as its transaction, which rests while others read.
  await client.query(
    "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; set timezone = 'UTC'",
  );
  return client;
}

/** Two that write one folder would take each other's files. The lock goes with its connection. */
async function requireAlone(client, out) {
  const lock = "select pg_try_advisory_lock(hashtextextended('tributary export ' || $1, 0)) as held";
  const { rows } = await client.query(lock, [out]);
  if (!rows[0].held) throw new Refusal("--out: another export is writing it");
}

/** The moment of the export, which others join, and what is to be read of it. */
async function takeSnapshot(client, { table, type, tenant, id, version, occurred, where }) {
  const hasOutbox = await client.query("select to_regclass('tributary_outbox_versions') is not null as yes");
  const [{ yes: fromOutbox }] = hasOutbox.rows;
  if (!fromOutbox && version === undefined) {
    throw new Refusal("expected an outbox of @tributary/producer on the search path, or --version");
  }
  const found = await client.query(
    `select oid, oid::regclass::text as name, relkind in ('r', 'p', 'm') as has_places
     from pg_class where oid = to_regclass($1)`,
    [table],
  );
  const [relation] = found.rows;
  if (relation === undefined) throw new Refusal("--table: expected a table or a view");
  const columns = await client.query(
    `select attname as name, atttypid::regtype::text as type from pg_attribute
     where attrelid = $1 and attnum > 0 and not attisdropped order by attnum`,
    [relation.oid],
  );
  await client.query("begin isolation level repeatable read read only");
  // Before the snapshot: nobody rewrites the table meanwhile, which would move its rows.
  await client.query(`lock table ${relation.name} in access share mode`);
  const taken = await client.query(
    `select pg_export_snapshot() as name, pg_current_snapshot()::text as transactions, now() as at,
       pg_relation_size($1::oid)::float8 as bytes,
       case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end::text as lsn`,
    [relation.oid],
  );
  const outbox = fromOutbox
    ? await client.query(
        "select coalesce(max(id), 0)::text as last, count(*)::float8 as waiting from tributary_outbox",
      )
    : undefined;
  const join = `left join tributary_outbox_versions v on v.tenant_id = (${tenant})::text
    and v.entity_type = ${client.escapeLiteral(type)} and v.entity_id = (${id})::text`;
  const selected = [
    `(${tenant})::text as tributary_tenant`,
    `(${id})::text as tributary_id`,
    `(${version ?? "coalesce(v.version, 0)"})::text as tributary_version`,
    ...(occurred === undefined ? [] : [`${instant(`(${occurred})::timestamptz`)} as tributary_occurred`]),
    ...columns.rows.map(({ name, type: of }) => {
      const column = client.escapeIdentifier(name);
      return `${exact(`t.${column}`, of)} as ${column}`;
    }),
  ];
  const { name, at, transactions, lsn, bytes } = taken.rows[0];
  return {
    name,
    /** Rows of blocks [from, to) of the table; of all without a range. */
    sql: (range) => {
      const conditions = [
        ...(where === undefined ? [] : [`(${where})`]),
        ...(range === undefined ? [] : [`t.ctid >= '(${range.from},0)'`]),
        ...(range?.to === undefined ? [] : [`t.ctid < '(${range.to},0)'`]),
      ];
      return `select row_to_json(r)::text as row from (select ${selected.join(", ")}
        from ${relation.name} t ${version === undefined ? join : ""}
        ${conditions.length === 0 ? "" : `where ${conditions.join(" and ")}`}) r`;
    },
    bytes: relation.has_places ? bytes : undefined,
    /** What the rows stand for: all that was committed at this moment, and nothing else. */
    watermark: { at: at.toISOString(), transactions, lsn, outbox: outbox?.rows[0] },
  };
}

const instant = (sql) => `to_char(${sql} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`;

/** JSON as a descriptor's fields are read from: numbers that a double does not hold are text, bytes base64. */
function exact(sql, type) {
  switch (type) {
    case "bigint":
    case "numeric":
      return `${sql}::text`;
    case "bytea":
      return `translate(encode(${sql}, 'base64'), E'\\n', '')`;
    case "timestamp with time zone":
      return instant(sql);
    default:
      return sql;
  }
}

/** Writes the parts, several at a time, all of them of the same moment. */
async function exportRows(
  config,
  { name, sql, bytes, watermark },
  { jobs, bytes: partBytes },
  folder,
  signal,
) {
  // Rows of a view lie nowhere.
  const blocks = bytes === undefined ? 0 : Math.ceil(bytes / BLOCK);
  const each = Math.max(1, Math.floor(partBytes / BLOCK));
  const ranges = [];
  for (let from = 0; from === 0 || from < blocks; from += each) {
    // The last one has no end: nobody knows how far partitions go.
    ranges.push(
      bytes === undefined ? undefined : { from, ...(from + each < blocks ? { to: from + each } : {}) },
    );
  }
  const parts = [];
  const progress = teller(ranges.length);
  const queue = ranges.entries();
  const one = async () => {
    const client = await connected(config);
    try {
      await client.query("begin isolation level repeatable read read only");
      await client.query(`set transaction snapshot ${client.escapeLiteral(name)}`);
      for (const [at, range] of queue) {
        const path = `part-${String(at).padStart(5, "0")}.ndjson.gz`;
        const part = await writePart(client, sql(range), join(folder, path), signal, progress.rows);
        parts.push({ path, ...part });
        progress.part();
      }
    } finally {
      await client.end();
    }
  };
  try {
    const running = Array.from({ length: Math.min(jobs, ranges.length) }, one);
    const failed = (await Promise.allSettled(running)).find(({ status }) => status === "rejected");
    if (failed !== undefined) throw failed.reason;
  } finally {
    progress.end();
  }
  parts.sort((a, b) => (a.path < b.path ? -1 : 1));
  return { watermark, rows: parts.reduce((sum, part) => sum + part.rows, 0), parts };
}

async function writePart(client, sql, path, signal, onRows) {
  const hash = createHash("sha256");
  let rows = 0;
  let bytes = 0;
  async function* lines() {
    await client.query(`declare rows no scroll cursor for ${sql}`);
    let count = 100;
    for (;;) {
      const fetched = await client.query(`fetch forward ${count} from rows`);
      if (fetched.rows.length === 0) break;
      const text = `${fetched.rows.map(({ row }) => row).join("\n")}\n`;
      rows += fetched.rows.length;
      onRows(fetched.rows.length);
      // Rows may be of any length: memory holds about the same of them.
      const perRow = text.length / fetched.rows.length;
      count = Math.max(1, Math.min(MOST_ROWS, Math.floor(FETCH_BYTES / perRow)));
      yield Buffer.from(text);
    }
    await client.query("close rows");
  }
  const counted = new Transform({
    transform(piece, _, done) {
      hash.update(piece);
      bytes += piece.length;
      done(null, piece);
    },
  });
  await pipeline(
    Readable.from(lines()),
    createGzip({ level: 4 }),
    counted,
    createWriteStream(path, { flags: "wx" }),
    { signal },
  );
  await synced(path);
  return { rows, bytes, sha256: hash.digest("hex") };
}

function teller(parts) {
  const started = performance.now();
  let [rows, done, told] = [0, 0, started];
  const tell = () => {
    told = performance.now();
    const rate = Math.round(rows / ((told - started) / 1000));
    const line = `${done} of ${parts} parts, ${rows} rows, ${rate}/s`;
    process.stderr.write(process.stderr.isTTY ? `\r${line}` : `${line}\n`);
  };
  return {
    rows: (count) => {
      rows += count;
      if (performance.now() - told > TOLD_EVERY_MS) tell();
    },
    part: () => {
      done++;
    },
    end: () => {
      tell();
      if (process.stderr.isTTY) process.stderr.write("\n");
    },
  };
}

/** For `tributary bootstrap start --mapping`: the payload's fields are the columns of their names. */
const mappingOf = ({ occurred }) => ({
  tenant: "tributary_tenant",
  entityId: "tributary_id",
  version: "tributary_version",
  ...(occurred === undefined ? {} : { occurredAt: "tributary_occurred" }),
});

async function keep(path, value) {
  await writeFile(path, `${JSON.stringify(value, undefined, 2)}\n`);
  await synced(path);
}

async function synced(path) {
  const file = await open(path, "r");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

try {
  await main();
} catch (error) {
  const told = error instanceof Refusal || error.name === "AbortError" || error.code !== undefined;
  process.stderr.write(`${told ? error.message : error.stack}\n`);
  process.exitCode = error instanceof Refusal ? 2 : 1;
}
