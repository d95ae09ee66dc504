import { type Command, InvalidArgumentError, Option } from "commander";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { duration, grouped } from "../../base/in-words.js";
import { JobDesk, type Planning } from "../../bulk/job-desk.js";
import type { Job, ReplayRequest } from "../../bulk/jobs/job.js";
import { jobJson, replayRequest } from "../../bulk/jobs/job.js";
import { type ReplayPlan, selectionOf } from "../../bulk/replay/replay-plan.js";
import { type ReplayReport, replayReport } from "../../bulk/replay/replay-report.js";
import { reportView } from "../../bulk/report-view.js";
import { wordsOf } from "../../bulk/routes.js";
import { loadModels } from "../../models/project.js";
import { readingDuck, withStore } from "../compose/runtime.js";
import { exitCodeOf, followJob } from "./follow-job.js";
import { ON_TERMINAL, reportText } from "./job-report.js";
import { jobLines } from "./job-view.js";
import { localUser } from "./local-user.js";
import {
  configOf,
  type DataOptions,
  type LimitOptions,
  limitsOf,
  priorityNumber,
  timeOf,
  withData,
  withLimits,
} from "./options.js";

interface ReplayOptions extends DataOptions, LimitOptions {
  readonly model: string;
  readonly tenant?: string;
  readonly from?: string | number;
  readonly until?: string | number;
  readonly compare?: boolean;
  readonly swap?: boolean;
  readonly repair?: boolean;
  readonly incomplete?: boolean;
  readonly plan?: boolean;
  readonly id?: string;
  readonly priority?: number;
  readonly detach?: boolean;
}

const ACTIONS = ["compare", "swap", "repair"] as const;

export function addReplayCommand(program: Command): void {
  const action = (name: (typeof ACTIONS)[number], description: string) =>
    new Option(`--${name}`, description).conflicts(ACTIONS.filter((other) => other !== name));
  withLimits(withData(program.command("replay")))
    .description("run raw into a model again beside the table that is served, and tell how they differ")
    .requiredOption("--model <name>", "e.g. scm.files")
    .option("--tenant <id>", "of this tenant alone")
    .option("--from <time|version>", "events received from then on, or of this version and later", boundOf)
    .option("--until <time|version>", "events received before then, or of earlier versions", boundOf)
    .addOption(action("compare", "change nothing (the default)"))
    .addOption(action("swap", "then serve the new table, in one commit"))
    .addOption(action("repair", "then replace the tenant's rows by the new ones, in one commit"))
    .option(
      "--incomplete",
      "also where payloads in the object store are lost: their rows go, and can be redriven",
    )
    .option("--plan", "only tell how much that is to read")
    .option("--id <id>", "name of the job: a-z 0-9 - (default: made up)")
    .option("--priority <n>", "-100 to 100; greater comes first (default: 0)", priorityNumber)
    .option("--detach", "do not follow it")
    .action(replay);
}

function boundOf(text: string): string | number {
  if (/^\d{1,16}$/.test(text) && Number.isSafeInteger(Number(text))) return Number(text);
  try {
    return timeOf(text);
  } catch {
    throw new InvalidArgumentError("expected a version, or a time such as 2026-01-31T12:00:00Z");
  }
}

async function replay(options: ReplayOptions): Promise<void> {
  const config = configOf(options);
  const asked = requestOf(options);
  await withStore(config, async (store) => {
    const desk = new JobDesk(store);
    const planning = planningOf(config);
    if (options.plan) {
      const plan = await planning((parts) => desk.replayPlan(parts, asked));
      console.log(options.json ? JSON.stringify({ plan }) : planLine(plan));
      return;
    }
    const { job: ordered, wasThere, plan } = await desk.replay(planning, asked, localUser());
    const { id } = ordered.order;
    if (!options.json) {
      if (plan !== undefined) process.stderr.write(`${planLine(plan)}\n`);
      process.stderr.write(`${wasThere ? "it is there already" : "asked for"}: ${id}\n`);
    }
    const job = options.detach
      ? ordered
      : await followJob(desk.jobs, id, `tributary bootstrap status ${id}`, options.json === true);
    const report = await replayReport(store, id);
    tell(job, report, options);
    if (!options.detach) process.exitCode = exitCodeOf(job);
  });
}

/** Errors: TRB-REPLAY-ORDER, TRB-CLI-USAGE. */
function requestOf(options: ReplayOptions): ReplayRequest {
  const { model, tenant, from, until, id, priority, incomplete } = options;
  const action = ACTIONS.find((name) => options[name]) ?? "compare";
  const given = { model, tenant, from, until, action, incomplete, id, priority, limits: limitsOf(options) };
  const parsed = replayRequest.safeParse(given);
  if (!parsed.success) throw new TributaryError("TRB-CLI-USAGE", wordsOf(parsed.error));
  selectionOf(parsed.data);
  return parsed.data;
}

/** Lends what a replay is planned with. */
const planningOf =
  (config: Config): Planning =>
  async (use) => {
    const models = loadModels(config.transformsDir);
    const duck = await readingDuck();
    try {
      const { checkpointEvery } = config.table;
      return await use({ models, duck, tableOptions: { checkpointEvery } });
    } finally {
      duck.close();
    }
  };

const planLine = ({ files, rows, bytes, seconds }: ReplayPlan): string =>
  `at most ${grouped(rows)} events in ${grouped(files)} files of raw, ${grouped(bytes)} bytes; about ${duration(seconds * 1000)} with nothing else on the machine`;

function tell(job: Job, report: ReplayReport | undefined, { json }: DataOptions): void {
  if (json) console.log(JSON.stringify({ ...jobJson(job), ...(report === undefined ? {} : { report }) }));
  else if (report === undefined) console.log(jobLines(job));
  else console.log(reportText(reportView({ job: jobJson(job), replay: report }, ON_TERMINAL)));
}
