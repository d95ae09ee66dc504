import { setImmediate } from "node:timers/promises";
import { Envelope } from "../contracts/envelope.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";

/** How far a table has come: what it has taken in of each partition of the stream. */
export interface TableProgress {
  readonly name: string;
  readonly entityType: string;
  readonly positions: ReadonlyMap<string, string>;
}

/** Which accepted events of the stream the tables have not taken in yet, as of one look. */
export interface Waiting {
  /** When the oldest such event of the tenant was received, in ms since the epoch; undefined when none was found. */
  oldest(tenant: string, table: string): number | undefined;
  /** False when there was more than one look reads: what was not found may be there all the same. */
  readonly complete: boolean;
}

/** Bytes of events one look reads: some 50 ms of work, in slices. More waits only while ingest is far behind. */
const LOOK_BYTES = 32 * 1024 * 1024;

/**
 * Looks at what stands in the stream behind the consumer's low-water record, for the given tables and all tenants at
 * once: how long one look takes, and how often there is one, then tells no tenant of another.
 */
export async function lookForWaiting(
  stream: Pick<ChangeStreamReader, "waiting">,
  consumer: string,
  tables: readonly TableProgress[],
  maxBytes = LOOK_BYTES,
): Promise<Waiting> {
  const byType = new Map<string, TableProgress[]>();
  for (const table of tables) byType.set(table.entityType, [...(byType.get(table.entityType) ?? []), table]);
  const oldest = new Map<string, number>();
  const envelope = new Envelope();
  let bytes = 0;
  let complete = true;
  for await (const batch of stream.waiting(consumer)) {
    for (let i = 0; i < batch.count; i++) {
      // Read before it was accepted; here only the names at its head matter.
      envelope.read(batch.bytes, batch.starts[i]!, batch.ends[i]!);
      const type = batch.bytes.toString("utf8", envelope.typeStart, envelope.typeEnd);
      const partition = batch.names[batch.partitions[i]!]!;
      for (const { name, positions } of byType.get(type) ?? []) {
        if (batch.positions[i]! <= (positions.get(partition) ?? "")) continue;
        const key = keyOf(batch.bytes.toString("utf8", envelope.tenantStart, envelope.tenantEnd), name);
        oldest.set(key, Math.min(batch.receivedAt[i]!, oldest.get(key) ?? Number.POSITIVE_INFINITY));
      }
      bytes += batch.ends[i]! - batch.starts[i]!;
    }
    if (bytes > maxBytes) {
      complete = false;
      break;
    }
    await setImmediate();
  }
  return { complete, oldest: (tenant, table) => oldest.get(keyOf(tenant, table)) };
}

/** Neither a tenant's id nor a table's name holds a line break. */
const keyOf = (tenant: string, table: string): string => `${tenant}\n${table}`;
