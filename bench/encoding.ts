import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { DuckDBConnection } from "@duckdb/node-api";
import { chunksOf, Duck, literal } from "../services/base/duckdb.js";
import { PayloadEncoder } from "../services/contracts/payload-encoder.js";
import { PayloadRows } from "../services/contracts/payload-rows.js";
import { ProtoRegistry } from "../services/contracts/registry.js";
import { writeProtos } from "../test/support/inline-protos.js";

/**
 * What it costs to make payloads of an export's rows: a Parquet file of 16 columns is scanned, scanned with the columns
 * cast as fields want them, and encoded, in turns and on one thread. Prints the best of each, and the ratios.
 */
const { values: options } = parseArgs({
  options: { rows: { type: "string", default: "1000000" }, rounds: { type: "string", default: "3" } },
});
const rows = Number(options.rows);

const PROTO = `syntax = "proto3"; package bench; import "google/protobuf/timestamp.proto"; import "google/protobuf/wrappers.proto";
  enum Status { STATUS_UNSPECIFIED = 0; STATUS_OPEN = 1; STATUS_IN_PROGRESS = 2; STATUS_DONE = 3; }
  message Order { string key = 1; string title = 2; string description = 3; string customer = 4; string city = 5; Status status = 6;
    int64 total_cents = 7; int32 quantity = 8; sint32 balance = 9; uint64 serial = 10; double weight = 11; bool paid = 12;
    google.protobuf.Timestamp created_at = 13; google.protobuf.Timestamp paid_at = 14; optional string note = 15;
    google.protobuf.StringValue voucher = 16; }`;
const COLUMNS: Readonly<Record<string, string>> = {
  key: "'ORDER-' || i",
  title: "'Title of order number ' || i",
  description:
    "'A description of what was ordered, which goes on for a while: ' || hash(i) || ' and ' || hash(i + 1)",
  customer: "'customer-' || hash(i) % 50000 || '@example.com'",
  city: "['Aachen', 'Bergisch Gladbach', 'Castrop-Rauxel', 'Düsseldorf'][i % 4 + 1]",
  status: "['STATUS_OPEN', 'STATUS_IN_PROGRESS', 'STATUS_DONE'][i % 3 + 1]",
  total_cents: "(hash(i) % 10000000)::BIGINT",
  quantity: "(i % 12)::INTEGER",
  balance: "(i % 2000 - 1000)::INTEGER",
  serial: "(i * 7919)::BIGINT",
  weight: "(hash(i) % 10000) / 16.0",
  paid: "i % 3 = 0",
  created_at: "TIMESTAMPTZ '2020-01-01 00:00:00+00' + to_microseconds(i * 1000003)",
  paid_at: "CASE WHEN i % 3 = 0 THEN TIMESTAMPTZ '2021-01-01 00:00:00+00' + to_microseconds(i * 1000003) END",
  note: "CASE WHEN i % 4 = 0 THEN 'note ' || i END",
  voucher: "CASE WHEN i % 10 = 0 THEN 'VOUCHER-' || i END",
};

async function cpuOf(work: () => Promise<void>): Promise<{ cpuMicros: number; seconds: number }> {
  const since = performance.now();
  const before = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(before);
  return { cpuMicros: user + system, seconds: (performance.now() - since) / 1000 };
}

async function scan(connection: DuckDBConnection, sql: string): Promise<void> {
  for await (const _ of chunksOf(connection, sql));
}

const folder = mkdtempSync(join(tmpdir(), "encoding-"));
const duck = await Duck.create({ memoryBytes: 1024 * 1024 * 1024 });
try {
  const connection = await duck.connect();
  const relation = literal(join(folder, "orders.parquet"));
  const made = Object.entries(COLUMNS).map(([name, sql]) => `${sql} AS ${name}`);
  await connection.run(
    `COPY (SELECT ${made.join(", ")} FROM range(${rows}) t(i)) TO ${relation} (COMPRESSION zstd)`,
  );
  writeProtos(join(folder, "proto"), { "order.proto": PROTO });
  const { types } = ProtoRegistry.load([join(folder, "proto")]);
  const names = Object.keys(COLUMNS);
  const expressions = Object.fromEntries(names.map((name) => [name, name]));
  const encoder = await PayloadEncoder.bind(
    connection,
    relation,
    types.getMessage("bench.Order")!,
    types,
    expressions,
  );
  const cast = `SELECT ${encoder.columns.join(", ")} FROM ${relation}`;
  const out = new PayloadRows();
  let bytes = 0;
  const encode = async (): Promise<void> => {
    bytes = 0;
    for await (const chunk of chunksOf(connection, cast)) {
      encoder.take(chunk, 0);
      for (let first = 0; first < chunk.rowCount; first = out.end) {
        encoder.encode(first, out);
        for (let row = first; row < out.end; row++) {
          const refusal = out.refusal(row);
          if (refusal !== undefined) throw new Error(refusal.message);
          bytes += out.ends[row]! - out.from(row);
        }
      }
      encoder.release();
    }
  };
  const kinds = {
    scan: () => scan(connection, `SELECT ${names.join(", ")} FROM ${relation}`),
    cast: () => scan(connection, cast),
    encode,
  };
  const best = {
    scan: Number.POSITIVE_INFINITY,
    cast: Number.POSITIVE_INFINITY,
    encode: Number.POSITIVE_INFINITY,
  };
  for (let round = 0; round < Number(options.rounds); round++) {
    for (const kind of Object.keys(kinds) as (keyof typeof kinds)[]) {
      const { cpuMicros, seconds } = await cpuOf(kinds[kind]);
      best[kind] = Math.min(best[kind], cpuMicros / rows);
      console.log(
        `${kind}: ${Math.round(rows / seconds)} rows/s, ${(cpuMicros / rows).toFixed(2)} CPU µs a row`,
      );
    }
  }
  console.log(
    `bytes a payload: ${(bytes / rows).toFixed(0)}; beside the scan: ${(best.encode - best.scan).toFixed(2)} CPU µs a row, ` +
      `of which ${(best.cast - best.scan).toFixed(2)} casts; ${(best.encode / best.scan).toFixed(2)} times the scan`,
  );
} finally {
  duck.close();
  rmSync(folder, { recursive: true });
}
