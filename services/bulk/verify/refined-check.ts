import { TributaryError } from "../../base/errors.js";
import type { IngestContext } from "../../ingest/context.js";
import type { EventBatch } from "../../ingest/event-batch.js";
import { isOf, refinedRoot } from "../../ingest/refined-table.js";
import type { BoundModel } from "../../models/bind.js";
import { DeltaTable } from "../../table/delta-table.js";
import { partsOf, progressOf } from "../../table/progress.js";
import { mayHoldTenant } from "../../table/scan.js";
import { comparedOf } from "../chunks/row-digests.js";
import { LANE } from "../jobs/job-tracks.js";
import { EntityCheck } from "./entity-check.js";
import { folderOf, KeyBuckets } from "./key-buckets.js";
import type { Made } from "./made-files.js";
import { MadeRows } from "./made-rows.js";
import type { DifferingKey, RefinedTenant } from "./standings.js";

export interface RefinedCheck {
  readonly model: string;
  /** Of the table. */
  readonly version: number;
  readonly tenants: ReadonlyMap<string, RefinedTenant>;
  /** The first few, by tenant and id. */
  readonly keys: readonly DifferingKey[];
}

export interface CheckedJob {
  /** The stream that its rows came by. */
  readonly stream: string;
  /** Where its rows may be of one alone. */
  readonly tenant: string | undefined;
}

export interface CheckOptions {
  /** Before each batch of the job's events, as the job's own pace wants it. */
  readonly pace: (batch: Pick<EventBatch, "count" | "byteCount">) => Promise<void>;
  readonly rowsAtOnce?: number;
}

/**
 * Compares the table of a model with raw, for the entities of a job. Live traffic may go on: both are looked at as of
 * one moment each, the table first. Memory does not grow with the rows. Errors: TRB-VERIFY-BEHIND; those of tables.
 */
export async function checkRefined(
  context: Pick<IngestContext, "store" | "duck" | "tableOptions" | "config" | "registry" | "decoding">,
  job: CheckedJob,
  raw: DeltaTable,
  model: BoundModel,
  { files: made, whole }: Made,
  options: CheckOptions,
): Promise<RefinedCheck> {
  const { store, duck, tableOptions } = context;
  const table = await DeltaTable.open(store, refinedRoot(model), duck, tableOptions);
  if (table === undefined || !isOf(table.snapshot, model)) throw behind(model);
  const { snapshot } = table;
  const progress = progressOf(snapshot);
  const rawSnapshot = await raw.refresh();
  const to = [...progressOf(rawSnapshot)].filter(([track]) => partsOf(track).stream === job.stream);
  for (const [track, position] of to) if (progress.get(track) !== position) throw behind(model);
  const files = snapshot.files.filter((file) => job.tenant === undefined || mayHoldTenant(file, job.tenant));
  // Read later they might be gone: a replaced vector is kept no longer than a replaced file, and is no file to miss.
  for (const file of files) await table.mask(file);
  const columns = comparedOf(model.columns);
  // No source has the job's deletes.
  const read = whole.has(model.name) ? to.filter(([track]) => partsOf(track).partition !== LANE) : to;
  await duck.with((connection) =>
    MadeRows.each(
      context,
      model,
      columns,
      { table: raw, snapshot: rawSnapshot, connection, entityType: model.entityType },
      new Map(read),
      (other, relation) => made.write(other, model.name, relation),
      options.pace,
    ),
  );
  const use = (buckets: KeyBuckets): Promise<RefinedCheck> =>
    duck.with(async (connection) => {
      const of = {
        connection,
        buckets,
        table,
        files,
        raw,
        columns,
        job,
        made: made.of(model.name),
      };
      const found = await new EntityCheck({ ...of, pace: options.pace }).run();
      return { model: model.name, version: snapshot.version, ...found };
    });
  const rows = [...files, ...rawSnapshot.files].reduce((sum, file) => sum + file.rows, 0);
  return KeyBuckets.with(folderOf(context), rows, use, options.rowsAtOnce);
}

const behind = ({ name }: BoundModel): TributaryError =>
  new TributaryError("TRB-VERIFY-BEHIND", `${name}: its table has not taken in all of the job's rows yet`);
