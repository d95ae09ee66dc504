import type { DuckDBConnection } from "@duckdb/node-api";
import { TributaryError } from "../base/errors.js";
import type { BoundModel } from "../models/bind.js";
import { BOUNDED } from "../table/data-file.js";
import type { TableSpec } from "../table/definition.js";
import { ONE_HOUR, RETENTION } from "../table/delta-table.js";
import { type ColumnSpec, deltaTypeOf } from "../table/schema.js";
import { COMMIT_TIMES, PARTITION_COLUMN } from "../table/state.js";
import type { TableSnapshot } from "../table/types.js";

export const refinedRoot = (model: Pick<BoundModel, "domain" | "table">): string =>
  `refined/${model.domain}/${model.table}`;

export const FINGERPRINT = "tributary.fingerprint";

export const fingerprintOf = ({ properties }: Pick<TableSnapshot, "properties">): string | undefined =>
  properties.get(FINGERPRINT);

/** Whether the table is this very model's: of another one's nothing may be written into it. */
export const isOf = (
  table: Pick<TableSnapshot, "properties">,
  { fingerprint }: Pick<BoundModel, "fingerprint">,
): boolean => fingerprintOf(table) === fingerprint;

/** What is told of a table that is ahead of what it is made from. */
export const AHEAD =
  "it has taken in events that raw does not have (raw was set back: restored from an older copy, say); restore raw, or let a repair build this table anew from what raw has";

/** Where a row stands in the order of writes (design 3.1); hidden from views. */
const ORDER_SPECS: readonly ColumnSpec[] = [
  { name: "_tributary_version", type: "long", nullable: true, description: "Version of the row's event." },
  {
    name: "_tributary_operation",
    type: "byte",
    nullable: true,
    description: "Operation of the row's event.",
  },
  { name: "_tributary_hash", type: "long", nullable: true, description: "xxh64 of type URL and payload." },
  {
    name: "_tributary_occurred_at",
    type: "timestamp",
    nullable: true,
    description: "Time of the row's event.",
  },
];

/**
 * The table of a model. The writer feature keeps other engines from rewriting its files: a purge by one that does not
 * know tombstones would drop them, and deleted rows could come back.
 * Errors: TRB-MODEL-INVALID for a column whose type Delta does not have.
 */
export async function refinedSpec(connection: DuckDBConnection, model: BoundModel): Promise<TableSpec> {
  const columns: ColumnSpec[] = [];
  for (const { name, type, description } of model.columns) {
    const result = await connection.run(`SELECT NULL::${type}`);
    const delta = deltaTypeOf(result.columnType(0));
    if (delta === undefined) {
      throw new TributaryError(
        "TRB-MODEL-INVALID",
        `${model.name}: column "${name}" is of type ${type}, which Delta does not have; cast it`,
      );
    }
    columns.push({
      name,
      type: delta,
      // Keys too: a required column asks writers for the feature `invariants`, and Spark refuses a table without it.
      nullable: true,
      ...(description === undefined ? {} : { description }),
    });
  }
  return {
    columns: [...columns, ...ORDER_SPECS, { name: PARTITION_COLUMN, type: "string", nullable: true }],
    partitionColumns: [PARTITION_COLUMN],
    properties: {
      "delta.enableDeletionVectors": "true",
      [COMMIT_TIMES]: "true",
      // No bound tells of what a model makes.
      [BOUNDED]: "tenant_id,_tributary_version,_tributary_occurred_at",
      [RETENTION]: ONE_HOUR,
      "tributary.model": model.name,
      [FINGERPRINT]: model.fingerprint,
    },
    protocol: {
      minReaderVersion: 3,
      minWriterVersion: 7,
      readerFeatures: ["deletionVectors"],
      writerFeatures: ["deletionVectors", "domainMetadata", "inCommitTimestamp", "tributary.upsert"],
    },
    ...(model.description === undefined ? {} : { description: model.description }),
  };
}
