import { CODES, type Code } from "../../base/codes.js";
import { duration, grouped, printable } from "../../base/in-words.js";
import { hasEnded, type Job, type JobState, tenantOf } from "../../bulk/jobs/job.js";
import { textTable } from "../terminal/text-table.js";

/** Bulk jobs as people and programs are told of them. */

/** What becomes of it, in a word or two: a wish that is not met yet is told beside. */
function phaseOf({ wish, state }: Pick<Job, "wish" | "state">): string {
  const { phase } = state;
  if (hasEnded(state)) return phase;
  if (wish === "cancel") return `${phase}, to be cancelled`;
  if (wish === "pause" && phase !== "paused") return `${phase}, to be paused`;
  return phase;
}

/** How much is done of what it is at, from 0 to 1; undefined while nothing tells. */
export function fractionOf({ phase, bytes, bytesDone, verified }: JobState): number | undefined {
  if (phase === "done") return 1;
  if (phase === "verifying") return verified;
  return bytes > 0 ? Math.min(1, bytesDone / bytes) : undefined;
}

const percent = (fraction: number | undefined): string =>
  fraction === undefined ? "" : `${Math.floor(fraction * 100)} %`;

export const jobsTable = (jobs: readonly Job[]): string =>
  textTable(
    ["id", "kind", "of", "phase", "done", "landed", "refined", "rejected", "priority", "asked for"],
    jobs.map((job) => {
      const { order, state } = job;
      const { rowsLanded, rowsRefined, rejected } = state;
      const numbers = [rowsLanded, rowsRefined, rejected].map(grouped);
      const done = percent(fractionOf(state));
      return [order.id, order.kind, subjectOf(job), phaseOf(job), done, ...numbers, order.priority, order.at];
    }),
  );

const subjectOf = ({ order }: Job): string =>
  order.kind === "bootstrap" ? order.source : order.kind === "replay" ? order.model : order.of;
const SUBJECTS = { bootstrap: "source", replay: "model", verify: "job" } as const;

/** What is in the import queue, and for how long the oldest of it. */
function waitingRows({ rowsWaiting = 0, waitingSince, writtenAt }: JobState): [string, string][] {
  if (rowsWaiting === 0 || waitingSince === undefined) return [];
  const ms = Math.max(0, Date.parse(writtenAt) - Date.parse(waitingSince));
  return [["waiting", `${grouped(rowsWaiting)} rows in the import queue, for up to ${duration(ms)}`]];
}

/** One job in lines. */
export function jobLines(job: Job): string {
  const { order, state } = job;
  const rows: [string, unknown][] = [["phase", phaseOf(job)]];
  if (state.code !== undefined) rows.push(["why", `${state.code}: ${state.reason ?? ""}`]);
  const remedy = CODES[state.code as Code]?.remedy;
  if (remedy !== undefined) rows.push(["what to do", remedy.replaceAll(/\bID\b/g, order.id)]);
  rows.push([SUBJECTS[order.kind], subjectOf(job)]);
  if (order.kind === "bootstrap" && order.entityType !== undefined)
    rows.push(["entity type", order.entityType]);
  const tenant = tenantOf(order);
  if (tenant !== undefined) rows.push(["tenant", tenant]);
  if (state.bytes > 0 && order.kind !== "verify") {
    const share = percent(Math.min(1, state.bytesDone / state.bytes));
    rows.push(["read", `${grouped(state.bytesDone)} of ${grouped(state.bytes)} bytes (${share})`]);
  }
  if (order.kind === "bootstrap")
    rows.push(["landed", `${grouped(state.rowsLanded)} rows`], ...waitingRows(state));
  if (order.kind !== "verify") rows.push(["refined", `${grouped(state.rowsRefined)} rows`]);
  if (order.kind === "bootstrap") {
    const see = state.rejected === 0 ? "" : `: tributary bootstrap rejects ${order.id}`;
    rows.push(["rejected", `${grouped(state.rejected)} rows${see}`]);
  }
  if (state.verified !== undefined) {
    const see = state.verified === 1 ? `: tributary bootstrap report ${order.id}` : "";
    rows.push(["verified", `${percent(state.verified)}${see}`]);
  }
  rows.push(["priority", String(order.priority)], ["asked for", `${order.at} by ${order.by}`]);
  if (state.rowsPerSecond !== undefined) rows.push(["of late", `${grouped(state.rowsPerSecond)} rows/s`]);
  if (state.etaSeconds !== undefined) rows.push(["left", `about ${duration(state.etaSeconds * 1000)}`]);
  if (state.yieldedSeconds !== undefined)
    rows.push(["gave way", `${duration(state.yieldedSeconds * 1000)} to live events`]);
  if (state.startedAt !== undefined) rows.push(["began", state.startedAt]);
  rows.push(["as of", state.writtenAt]);
  const width = Math.max(...rows.map(([name]) => name.length));
  const lines = rows.map(([name, value]) => `  ${name.padEnd(width)}  ${printable(String(value))}`);
  return [`${order.kind} ${order.id}`, ...lines].join("\n");
}
