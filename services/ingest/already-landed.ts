import type { DuckDBTimestampTZValue } from "@duckdb/node-api";
import { literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { Envelope } from "../contracts/envelope.js";
import type { Positions } from "../table/progress.js";
import { withFilesScan } from "../table/scan.js";
import type { EventBatch } from "./event-batch.js";
import { filesAt, type RawView } from "./replay.js";

/** What, beside its place, tells an event from another: entity and version, and when it was received. */
export type SameBy = "entity" | "moment";

/**
 * Makes sure that raw has the very events of a batch that are to be left out as landed, up to `positions`. A log that
 * was restored from an older copy than raw gives positions to new events that raw knows by others: left out in good
 * faith, they would be lost. The last one of each partition tells, as positions are given in order.
 * Errors: TRB-STREAM-CORRUPT.
 */
export async function requireLanded(
  view: RawView,
  batch: EventBatch,
  positions: Positions,
  sameBy: SameBy,
): Promise<void> {
  const last = new Map<string, number>();
  for (let i = 0; i < batch.count; i++) {
    const partition = batch.partitions[i]!;
    if (batch.positions[i]! > (positions.get(partition) ?? "")) continue;
    const before = last.get(partition);
    if (before === undefined || batch.positions[i]! > batch.positions[before]!) last.set(partition, i);
  }
  const places = [...last].map(
    ([partition, i]) => `(partition = ${literal(partition)} AND position = ${literal(batch.positions[i]!)})`,
  );
  const wanted = [...last.values()].map((i) => batch.positions[i]!);
  const options = {
    columns: ["tenant_id", "entity_id", "version", "partition", "position", "received_at"],
    where: `stream = ${literal(batch.stream)} AND (${places.join(" OR ")})`,
  };
  const columns = "partition, position, received_at, version, tenant_id, entity_id";
  const files = filesAt(view.snapshot, wanted);
  const rows = await withFilesScan(view.table, view.snapshot, files, options, (sql) =>
    // Of a file that is missing or damaged nothing can be told, which is no reason to stop what comes.
    rowsOf(view.connection, `SELECT ${columns} FROM (${sql})`).catch(() => undefined),
  );
  if (rows === undefined) return;
  const found = new Set<string>();
  const at = (micros: bigint) => (sameBy === "moment" ? micros : "");
  for (const row of rows) {
    const [partition, position, received, ...entity] = row;
    found.add([partition, position, at((received as DuckDBTimestampTZValue).micros), ...entity].join("\n"));
  }
  const envelope = new Envelope();
  for (const [partition, i] of last) {
    batch.read(i, envelope);
    const micros = BigInt(Math.round(batch.receivedAt[i]! * 1000));
    const position = batch.positions[i]!;
    const entity = [envelope.version(), envelope.tenantId(), envelope.entityId()];
    if (found.has([partition, position, at(micros), ...entity].join("\n"))) continue;
    throw new TributaryError(
      "TRB-STREAM-CORRUPT",
      `partition ${partition}, position ${position}: the log has another event there than raw; one of them was restored from an older copy: restore both as they were at one moment`,
    );
  }
}
