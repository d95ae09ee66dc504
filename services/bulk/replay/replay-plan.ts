import { TributaryError } from "../../base/errors.js";
import { isTenantId } from "../../contracts/envelope.js";
import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { AHEAD, refinedRoot } from "../../ingest/refined-table.js";
import { type Selection, selectedFiles } from "../../ingest/replay.js";
import type { Model } from "../../models/project.js";
import { DeltaTable } from "../../table/delta-table.js";
import { aheadOf, progressOf } from "../../table/progress.js";
import type { TableSnapshot } from "../../table/types.js";
import type { ReplayJob } from "../jobs/job.js";

/** What a replay is asked for with, whoever asks. */
export type ReplayOrder = Pick<ReplayJob, "model" | "tenant" | "from" | "until" | "action">;

/**
 * The events that a replay runs again. Errors: TRB-REPLAY-ORDER for what makes no sense, or would swap a table for one
 * that holds a part.
 */
export function selectionOf({ tenant, from, until, action }: ReplayOrder): Selection {
  const wrong = (message: string) => new TributaryError("TRB-REPLAY-ORDER", message);
  if (tenant !== undefined && !isTenantId(tenant)) throw wrong("tenant: expected a tenant's id");
  if (action === "swap" && (from !== undefined || until !== undefined))
    throw wrong(
      "from, until: expected neither with swap, which would serve no other events; compare or repair",
    );
  if (action === "swap" && tenant !== undefined)
    throw wrong("tenant: expected none with swap, which would serve no other tenant; repair it instead");
  if (action === "repair" && tenant === undefined)
    throw wrong("tenant: expected one with repair; the whole table is swapped instead");
  const given = [from, until].filter((one) => one !== undefined);
  if (given.length === 2 && typeof from !== typeof until)
    throw wrong("from, until: expected two times or two versions");
  const [low, high] = [from, until].map((one) => (typeof one === "string" ? Date.parse(one) : one));
  if (low !== undefined && high !== undefined && low >= high)
    throw wrong("from, until: expected the first before the second");
  return {
    ...(tenant === undefined ? {} : { tenant }),
    ...(given.length === 0
      ? {}
      : {
          range: {
            by: typeof given[0] === "string" ? "received_at" : "version",
            ...(low === undefined ? {} : { from: low }),
            ...(high === undefined ? {} : { until: high }),
          },
        }),
  };
}

/** What a replay is about to do, as far as files' statistics tell: none of these is less than what will come of it. */
export interface ReplayPlan {
  /** Of raw. */
  readonly files: number;
  readonly rows: number;
  readonly bytes: number;
  /** With nothing else on the machine, and no limits. */
  readonly seconds: number;
}

/** Rows that one process decodes, models and writes in a second, roughly, and bytes that it reads. */
const ROWS_PER_SECOND = 40_000;
const BYTES_PER_SECOND = 60_000_000;

/** What a plan is made of: of ingest's, and of whoever else has the lake's store. */
export type PlanContext = Pick<IngestContext, "store" | "duck" | "tableOptions"> & {
  /** Those in force. */
  readonly models: readonly Model[];
};

/** What a replay reads, and what is served. */
interface ReplayTables {
  readonly raw: DeltaTable;
  readonly table: DeltaTable;
}

/**
 * The same for who plans a replay and for who runs it. Errors: TRB-TABLE-NOT-FOUND, where there is nothing to run or to
 * compare with; TRB-TABLE-CORRUPT, for a table that is ahead of raw; those of a table's log.
 */
export async function replayTables(
  { store, duck, tableOptions }: Pick<PlanContext, "store" | "duck" | "tableOptions">,
  model: Pick<Model, "name" | "entityType" | "domain" | "table">,
): Promise<ReplayTables> {
  const open = async (root: string, otherwise: string) => {
    const table = await DeltaTable.open(store, root, duck, tableOptions);
    if (table !== undefined) return table;
    throw new TributaryError("TRB-TABLE-NOT-FOUND", `model: ${otherwise}`);
  };
  const raw = await open(rawRoot(model.entityType), `nothing of ${model.entityType} has landed yet`);
  const table = await open(
    refinedRoot(model),
    `the table of ${model.name} is not there; \`tributary table repair ${model.name}\` builds it anew from raw`,
  );
  // Live events land meanwhile: raw is asked last.
  if (aheadOf(progressOf(table.snapshot), progressOf(await raw.refresh())).length > 0)
    throw new TributaryError("TRB-TABLE-CORRUPT", `model: of ${model.name}'s table: ${AHEAD}`);
  return { raw, table };
}

/** Also of what a replay would not begin with. Errors: TRB-REPLAY-ORDER; as `replayTables`. */
export async function planReplay(context: PlanContext, asked: ReplayOrder): Promise<ReplayPlan> {
  const selection = selectionOf(asked);
  const model = modelOf(context.models, asked);
  const { raw } = await replayTables(context, model);
  return planOf(raw.snapshot, selection);
}

/** Errors: TRB-REPLAY-ORDER. */
export function modelOf<M extends Pick<Model, "name">>(
  models: readonly M[],
  { model: asked }: Pick<ReplayOrder, "model">,
): M {
  const model = models.find(({ name }) => name === asked);
  if (model !== undefined) return model;
  throw new TributaryError("TRB-REPLAY-ORDER", "model: expected one of `models ls`");
}

export function planOf(raw: Pick<TableSnapshot, "files">, selection: Selection): ReplayPlan {
  const files = selectedFiles(raw, selection);
  const rows = files.reduce((sum, file) => sum + file.rows, 0);
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const seconds = Math.ceil(Math.max(rows / ROWS_PER_SECOND, bytes / BYTES_PER_SECOND));
  return { files: files.length, rows, bytes, seconds };
}
