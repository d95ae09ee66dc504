import { TributaryError } from "../../base/errors.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { DeltaTable } from "../../table/delta-table.js";
import { trackOf } from "../../table/progress.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import type { BootstrapJob, VerifyJob } from "../jobs/job.js";
import { rowsOfTrack } from "../jobs/job-rows.js";
import type { RunJob } from "../jobs/job-run.js";
import { JobStore } from "../jobs/job-store.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import type { Verification } from "../verify/verification.js";
import { requireEqual, verifyJob } from "./job-end.js";
import { landingsOf, sourceOf, withPlace } from "./job-source.js";
import { partOf } from "./verify-progress.js";

/**
 * Compares what a bootstrap job has landed with its source, long after it has ended: the source has to be what it was.
 * Errors: TRB-VERIFY-DIFFERS once all of it was looked at; TRB-VERIFY-NOTHING; those of `verifyJob`.
 */
export const runVerify: RunJob<VerifyJob> = async (context, { of }, host) => {
  host.tell({ phase: "verifying" });
  const { store, duck, tableOptions } = context;
  const { order } = await new JobStore(store).get(of);
  const source = await sourceOf(store, of);
  if (order.kind !== "bootstrap" || source === undefined) throw new TributaryError("TRB-VERIFY-NOTHING");
  const verified: BootstrapJob = order;
  return withPlace(context, verified, async (place) => {
    const landings = landingsOf(context, verified, place, source);
    const { files, bytes } = source.manifest;
    const rowsOf = async ({ entityType }: BootstrapOrder): Promise<number> => {
      const raw = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
      return raw === undefined ? 0 : rowsOfTrack({ duck }, raw, trackOf(streamOf(of), LANE));
    };
    const landed: number[] = [];
    for (const landing of landings) landed.push(await rowsOf(landing));
    host.tell({ files: files.length, bytes, rowsLanded: landed.reduce((sum, rows) => sum + rows, 0) });
    const found: Verification[] = [];
    for (const [at, landing] of landings.entries()) {
      const rows = landed[at]!;
      const part = { ...host, tell: partOf(host.tell, at, landings.length) };
      const one = await verifyJob(context, landing, part, rows);
      if (one === undefined) return false;
      found.push(one);
    }
    host.tell({ bytesDone: bytes, verified: 1 });
    requireEqual(context, landings, found);
    return true;
  });
};
