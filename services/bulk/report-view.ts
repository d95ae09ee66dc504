import { CODES, type Code } from "../base/codes.js";
import { duration, grouped } from "../base/in-words.js";
import type { BootstrapJob, JobState } from "./jobs/job.js";
import type { Difference } from "./replay/comparison.js";
import type { ReplayReport } from "./replay/replay-report.js";
import type { BootstrapReport, Report } from "./report.js";
import { STANDINGS } from "./verify/standings.js";
import type { Verification } from "./verify/verification.js";

/** A report for people, before it is a page or a text: what values are is not looked at again, so whoever writes it escapes them. */
export interface ReportView {
  readonly title: string;
  /** Undefined while nothing is known. */
  readonly good: boolean | undefined;
  readonly verdict: string;
  readonly sections: readonly Section[];
}

export interface Section {
  readonly heading: string;
  readonly facts?: readonly Fact[];
  readonly tables?: readonly ReportTable[];
}

export type Fact = readonly [name: string, value: string];

export interface ReportTable {
  readonly caption?: string;
  readonly columns: readonly string[];
  readonly rows: readonly (readonly (string | number)[])[];
  /** Of these there are more than are shown. */
  readonly more?: number;
  /** For those who look closely. */
  readonly fine?: boolean;
}

/** Of a view, by what it is for. */
export interface ReportLength {
  readonly tenants: number;
  /** Digests by tenant and column, also of those that are equal. */
  readonly digests: boolean;
}

/** As it goes on a page. */
const ON_PAGE: ReportLength = { tenants: 200, digests: true };

export const reportView = (report: Report, length = ON_PAGE): ReportView =>
  "replay" in report ? replayView(report.job, report.replay, length) : bootstrapView(report, length);

function bootstrapView(report: BootstrapReport, length: ReportLength): ReportView {
  const { job, vanished, rejects, verifications } = report;
  const { good, verdict } = verdictOf(report);
  return {
    title: `Bootstrap ${job.id}`,
    good,
    verdict,
    sections: [
      { heading: "The job", facts: jobFacts(job as BootstrapJob & Stated), tables: [workTable(report)] },
      ...(rejects.length === 0 ? [] : [rejectSection(report)]),
      ...(vanished === null ? [] : [vanishedSection(job.id, vanished, length)]),
      ...verifications.map((one) => verificationSection(one, length)),
    ],
  };
}

interface Stated {
  readonly state: JobState;
}

function verdictOf({ job, equal, verifications }: BootstrapReport): { good?: boolean; verdict: string } {
  const { phase, rejected } = job.state;
  const but =
    rejected === 0
      ? ""
      : `, but for ${rows(rejected)} that ${rejected === 1 ? "is no event" : "are no events"}`;
  if (equal === null) return { verdict: `Nobody has compared source and lake yet; the job is ${phase}` };
  if (equal) return { good: rejected === 0, verdict: `All of the source is in the lake${but}` };
  const differing = verifications.flatMap(({ tenants }) => tenants.filter((one) => !one.equal)).length;
  return { good: false, verdict: `Source and lake differ for ${counted(differing, "tenant")}${but}` };
}

function stateFacts(state: JobState): Fact[] {
  const { phase, code, reason } = state;
  if (code === undefined) return [["phase", phase]];
  const remedy = CODES[code as Code]?.remedy;
  return [
    ["phase", phase],
    ["why", `${code}: ${reason ?? ""}`],
    ...(remedy === undefined ? [] : [["what to do", remedy] as const]),
  ];
}

function jobFacts({ state, ...order }: BootstrapJob & Stated): Fact[] {
  const { source, entityType, tenant, reconcile, by, at } = order;
  return [
    ...stateFacts(state),
    ["source", `${source}, ${counted(state.files, "file")}, ${grouped(state.bytes)} bytes`],
    ["entity type", entityType ?? "of the events"],
    ["tenant", tenant ?? "all"],
    ...(reconcile === undefined ? [] : [["reconcile", watermarkWords(reconcile.watermark)] as const]),
    ["asked for", `${at} by ${by}`],
    ...(state.startedAt === undefined ? [] : [["began", state.startedAt] as const]),
    ["as of", state.writtenAt],
  ];
}

const watermarkWords = (watermark: NonNullable<BootstrapJob["reconcile"]>["watermark"]): string =>
  "version" in watermark
    ? `what the export lacks and is of version ${watermark.version} or older`
    : `what the export lacks and came before positions on ${counted(Object.keys(watermark.positions).length, "partition")}`;

function workTable({ job, equal }: BootstrapReport): ReportTable {
  const { rowsLanded, rowsRefined, rejected, seconds = {} } = job.state;
  const line = (what: string, count: number, took = 0) => [
    what,
    grouped(count),
    took === 0 ? "" : duration(took * 1000),
    took === 0 ? "" : grouped(Math.round(count / took)),
  ];
  const { landing = 0, refining = 0, verifying } = seconds;
  return {
    columns: ["", "rows", "time", "rows/s"],
    rows: [
      // Most are refined beside: what of it comes afterwards is no time of its own.
      line("landed in raw", rowsLanded, landing + refining),
      line("refined", rowsRefined),
      line("rejected", rejected),
      ...(verifying === undefined
        ? []
        : [line(equal === null ? "read again" : "compared", rowsLanded, verifying)]),
    ],
  };
}

function rejectSection({ job, rejects }: BootstrapReport): Section {
  return {
    heading: "Rows that are no events",
    facts: [["to mend them", `tributary bootstrap rejects export ${job.id} --to FILE`]],
    tables: [
      {
        columns: ["rows", "code", "reason", "first at"],
        rows: rejects.map(({ rows: some, code, reason, source, row }) => [
          grouped(some),
          code,
          reason,
          `${source}:${row}`,
        ]),
      },
    ],
  };
}

function vanishedSection(
  id: string,
  {
    count,
    asOf,
    ofTenants,
    leftAlone,
    foundAt,
    confirmed,
    byTenant,
    some,
  }: NonNullable<BootstrapReport["vanished"]>,
  length: ReportLength,
): Section {
  const command = `tributary bootstrap confirm ${id} --count ${count} --as-of ${asOf}`;
  const waits = count === 0 ? "there is nothing to confirm" : `nobody yet: ${command}`;
  return {
    heading: "What the export lacks",
    facts: [
      ["found", `${grouped(count)} entities of ${counted(ofTenants, "tenant")}, to be deleted`],
      ["as of", `version ${asOf} of raw, ${foundAt}`],
      ["left alone", `${counted(leftAlone, "tenant")} of which the export has no row`],
      ["confirmed", confirmed === null ? waits : `${confirmed.at} by ${confirmed.by}`],
    ],
    tables: [
      ...(byTenant.length === 0
        ? []
        : [
            cut(
              {
                columns: ["tenant", "entities"],
                rows: byTenant.map((one) => [one.tenant, grouped(one.entities)]),
              },
              length.tenants,
              ofTenants,
            ),
          ]),
      ...(some.length === 0
        ? []
        : [
            cut(
              {
                caption: "Some of them",
                columns: ["tenant", "entity", "version"],
                rows: some.map((one) => [one.tenant, one.id, one.version]),
              },
              some.length,
              count,
            ),
          ]),
    ],
  };
}

function verificationSection(found: Verification, length: ReportLength): Section {
  const { source, raw, tenants, more, rejected, models, keys } = found;
  const all = tenants.length + more;
  const rowsOfTenants = tenants.map((one) => [
    one.tenant,
    one.equal ? "equal" : "DIFFERS",
    grouped(one.source.rows),
    grouped(one.raw.rows),
    both(one.source.keys, one.raw.keys),
    both(one.source.events, one.raw.events),
  ]);
  const of = Object.entries(models);
  return {
    heading: `Source against lake: ${found.entityType}`,
    facts: [
      ["compared", found.at],
      ["source", `${rows(source.rows)}; ${rejected === 0 ? "none" : grouped(rejected)} rejected`],
      ["raw", `${rows(raw.rows)}, as of version ${raw.version}`],
      ["digest of ids", both(source.keys, raw.keys)],
      ["digest of events", both(source.events, raw.events)],
      ...of.map(([model, version]) => [model, `as of version ${version}`] as const),
    ],
    tables: [
      cut(
        {
          caption: "Rows by tenant",
          columns: ["tenant", "", "source", "raw", "digest of ids", "digest of events"],
          rows: rowsOfTenants,
        },
        length.tenants,
        all,
      ),
      ...of.flatMap(([model]) => modelTables(model, found, length)),
      ...(keys.length === 0
        ? []
        : [
            {
              caption: "Some entities that differ",
              columns: ["model", "tenant", "entity", "why"],
              rows: keys.map(({ model, tenant, id, why }) => [model, tenant, id, why]),
            },
          ]),
    ],
  };
}

function modelTables(model: string, { tenants, more }: Verification, length: ReportLength): ReportTable[] {
  const of = tenants.flatMap(({ tenant, models }) => {
    const found = models[model];
    return found === undefined ? [] : [{ tenant, ...found }];
  });
  const standings = of.map(({ tenant, entities, differing }) => [
    tenant,
    ...STANDINGS.map((one) => grouped(entities[one])),
    Object.keys(differing).join(", "),
  ]);
  const digests = of.flatMap(({ tenant, made, found, differing }) =>
    Object.keys(made)
      .filter((column) => length.digests || differing[column] !== undefined)
      .map((column) => [tenant, column, made[column]!, found[column] ?? "", grouped(differing[column] ?? 0)]),
  );
  const columns = of[0] === undefined ? 0 : Object.keys(of[0].made).length;
  return [
    cut(
      {
        caption: `Entities of ${model}`,
        columns: ["tenant", ...STANDINGS.map((one) => WORDS[one] ?? one), "columns that differ"],
        rows: standings,
      },
      length.tenants,
      of.length + more,
    ),
    ...(digests.length === 0
      ? []
      : [
          cut(
            {
              caption: `Digests of ${model} by column`,
              columns: ["tenant", "column", "made of raw", "in the table", "rows that differ"],
              rows: digests,
              fine: true,
            },
            length.tenants * columns,
            digests.length,
          ),
        ]),
  ];
}

const WORDS: Readonly<Record<string, string>> = { setAside: "set aside" };

function replayView(job: Report["job"], replay: ReplayReport | null, length: ReportLength): ReportView {
  const title = `Replay ${job.id}`;
  const facts: Fact[] = [...stateFacts(job.state), ["asked for", `${job.at} by ${job.by}`]];
  if (replay === null)
    return {
      title,
      good: undefined,
      verdict: "Nothing was compared yet",
      sections: [{ heading: "The job", facts }],
    };
  const { difference, setAside, version, comparedAt, events, action, model, tenant } = replay;
  const { served, rebuilt, apart } = difference;
  const good = differences(difference) === 0 && setAside.length === 0;
  const tables = differenceTables(replay, length);
  return {
    title,
    good,
    verdict: differences(difference) === 0 ? "No difference" : differenceWords(difference),
    sections: [
      {
        heading: "The job",
        facts: [
          ...facts,
          ["model", model],
          ["tenant", tenant ?? "all"],
          ["action", action],
          ["run again", counted(events, "event")],
          ["compared", `${comparedAt}, with version ${version} of the table`],
          ["served", rows(served)],
          ["of raw", rows(rebuilt)],
          ...(apart.length === 0 ? [] : [["not compared", apart.join(", ")] as const]),
        ],
      },
      ...(tables.length === 0 ? [] : [{ heading: "The difference", tables }]),
    ],
  };
}

const differenceTables = (
  { difference: { tenants, keys }, setAside }: ReplayReport,
  length: ReportLength,
): ReportTable[] =>
  [
    cut(
      {
        columns: ["tenant", "missing", "extra", "changed", "tombstones"],
        rows: tenants.map((one) => [
          one.tenant,
          ...[one.missing, one.extra, one.changed, one.tombstones].map(grouped),
        ]),
      },
      length.tenants,
      tenants.length,
    ),
    cut(
      {
        caption: "Some entities",
        columns: ["tenant", "entity", "what", "columns"],
        rows: keys.map((one) => [one.tenant, one.entityId, one.kind, one.columns.join(", ")]),
      },
      length.tenants,
      keys.length,
    ),
    {
      caption: "In no row",
      columns: ["events", "code", "reason"],
      rows: setAside.map((one) => [grouped(one.events), one.code, one.reason]),
    },
  ].filter((table) => table.rows.length > 0);

const differences = ({ missing, extra, changed, tombstones }: Difference): number =>
  missing + extra + changed + tombstones;

const differenceWords = ({ missing, extra, changed, tombstones }: Difference): string =>
  `${grouped(missing)} missing, ${grouped(extra)} that should not be there, ${grouped(changed)} otherwise, ${grouped(tombstones)} deleted otherwise`;

const counted = (count: number, what: string): string => `${grouped(count)} ${what}${count === 1 ? "" : "s"}`;
const rows = (count: number): string => counted(count, "row");
const both = (one: string, other: string): string => (one === other ? one : `${one} ≠ ${other}`);

function cut(table: ReportTable, most: number, all: number): ReportTable {
  const shown = table.rows.slice(0, most);
  return { ...table, rows: shown, ...(all > shown.length ? { more: all - shown.length } : {}) };
}
