import { writeFileSync } from "node:fs";
import type { Command } from "commander";
import { TributaryError } from "../../base/errors.js";
import { grouped, printable } from "../../base/in-words.js";
import { JobDesk } from "../../bulk/job-desk.js";
import { reportPage } from "../../bulk/report-page.js";
import { type ReportTable, type ReportView, reportView, type Section } from "../../bulk/report-view.js";
import { readingDuck, withStore } from "../compose/runtime.js";
import { textTable } from "../terminal/text-table.js";
import { localUser } from "./local-user.js";
import { configOf, type DataOptions, withData } from "./options.js";

interface ReportOptions extends DataOptions {
  readonly html?: string;
}

/** On a terminal: digests that are equal tell nobody anything. */
export const ON_TERMINAL = { tenants: 30, digests: false };

export function addReportCommand(bootstrap: Command): void {
  withData(bootstrap.command("report").argument("<id>"))
    .description("what a job has brought, rejected and deleted, and whether source and lake are equal")
    .option("--html <file>", "write it as a page instead; a new file, - for standard output")
    .action(report);
}

async function report(id: string, { html, ...options }: ReportOptions): Promise<void> {
  const config = configOf(options);
  const duck = await readingDuck();
  try {
    const tableOptions = { checkpointEvery: config.table.checkpointEvery };
    const found = await withStore(config, (store) =>
      new JobDesk(store).report({ duck, tableOptions }, id, localUser()),
    );
    if (html !== undefined) writePage(html, reportPage(reportView(found)));
    else if (options.json) console.log(JSON.stringify(found));
    else console.log(reportText(reportView(found, ON_TERMINAL)));
  } finally {
    duck.close();
  }
}

/** Errors: TRB-CLI-USAGE. */
function writePage(to: string, page: string): void {
  if (to === "-") {
    process.stdout.write(page);
    return;
  }
  try {
    // It names tenants and entities: others on the machine see it only once its owner lets them.
    writeFileSync(to, page, { flag: "wx", mode: 0o600 });
  } catch (cause) {
    throw new TributaryError("TRB-CLI-USAGE", "--html: expected a file that is not there yet", { cause });
  }
}

/** A report as text. */
export const reportText = ({ title, verdict, sections }: ReportView): string =>
  [printable(`${title}: ${verdict}`), ...sections.map(sectionText)].join("\n\n");

function sectionText({ heading, facts = [], tables = [] }: Section): string {
  const width = Math.max(0, ...facts.map(([name]) => name.length));
  const lines = facts.map(([name, value]) => `  ${name.padEnd(width)}  ${printable(value)}`);
  return [[printable(heading), ...lines].join("\n"), ...tables.map(tableText)].join("\n\n");
}

function tableText({ caption, columns, rows, more }: ReportTable): string {
  // Digests are to be compared, which takes all of their digits.
  const table = textTable(columns, rows, { maxWidth: 70 });
  const named = caption === undefined ? table : `${printable(caption)}\n${table}`;
  return more === undefined ? named : `${named}\n… and ${grouped(more)} more`;
}
