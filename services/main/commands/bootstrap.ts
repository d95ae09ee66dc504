import { readFileSync } from "node:fs";
import { type Command, Option } from "commander";
import { parse as parseYaml } from "yaml";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import type { CheckContext } from "../../bulk/bootstrap/bootstrap-check.js";
import { JobDesk } from "../../bulk/job-desk.js";
import {
  type BootstrapRequest,
  bootstrapRequest,
  type Job,
  type JobWish,
  jobJson,
  verifyRequest,
} from "../../bulk/jobs/job.js";
import { wordsOf } from "../../bulk/routes.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { FORMATS } from "../../sources/formats.js";
import { readingDuck, withStore } from "../compose/runtime.js";
import { checkText } from "./check-view.js";
import { exitCodeOf, followJob } from "./follow-job.js";
import { addReportCommand } from "./job-report.js";
import { jobLines, jobsTable } from "./job-view.js";
import { localUser } from "./local-user.js";
import {
  configOf,
  type DataOptions,
  type LimitOptions,
  limitNumber,
  limitsOf,
  priorityNumber,
  withData,
  withLimits,
} from "./options.js";
import { addReconcileCommands } from "./reconcile.js";
import { addRejectCommands } from "./rejects.js";
import { EXIT } from "./report.js";

interface StartOptions extends DataOptions, LimitOptions {
  readonly source: string;
  readonly mapping?: string;
  readonly type?: string;
  readonly tenant?: string;
  readonly id?: string;
  readonly priority?: number;
  readonly rejectLimit?: number;
  readonly format?: string;
  readonly delimiter?: string;
  readonly columns?: string;
  readonly null?: string;
  readonly detach?: boolean;
  readonly dryRun?: boolean;
  readonly reconcile?: string;
  readonly through?: string;
}

interface VerifyOptions extends DataOptions, LimitOptions {
  readonly priority?: number;
  readonly detach?: boolean;
}

const WISHES = [
  ["pause", "pause", "let a job rest: it stops behind what it is just committing"],
  ["resume", "run", "let a paused job go on, or one that has failed try again"],
  ["cancel", "cancel", "end a job for good; what has landed stays"],
] as const;

export function addBootstrapCommands(program: Command): void {
  const group = program.command("bootstrap").description("bring exports into the lake, beside live traffic");
  addStart(group);
  addRejectCommands(group);
  addReconcileCommands(group);
  addReportCommand(group);
  addVerifyCommand(group);
  withData(group.command("ls"))
    .description("list all bulk jobs, the oldest first")
    .action(async (options: DataOptions) => {
      const jobs = await withStore(configOf(options), (store) => new JobDesk(store).jobs.list());
      if (options.json) console.log(JSON.stringify({ jobs: jobs.map(jobJson) }));
      else console.log(jobs.length === 0 ? "no jobs" : jobsTable(jobs));
    });
  withData(group.command("status").argument("<id>"))
    .description("how far a job is, and what it waits for")
    .action(async (id: string, options: DataOptions) => {
      tell(await withStore(configOf(options), (store) => new JobDesk(store).jobs.get(id)), options);
    });
  for (const [name, wish, description] of WISHES) {
    withData(group.command(name).argument("<id>"))
      .description(description)
      .action(async (id: string, options: DataOptions) => tell(await wished(id, wish, options), options));
  }
}

function addStart(group: Command): void {
  withLimits(withData(group.command("start")))
    .description(
      "bring in an export, and follow it until it has landed; the same command again changes nothing",
    )
    .requiredOption("--source <root/path>", "where it lies: a root of bulk.sources, and what is below it")
    .option("--mapping <file>", "YAML or JSON: how its rows become events; whole events need none")
    .option("--type <name>", "entity type of its rows, e.g. scm.v1.File")
    .option("--tenant <id>", "of this tenant alone; rows of others are rejected")
    .option("--id <id>", "name of the job: a-z 0-9 - (default: made up)")
    .option("--priority <n>", "-100 to 100; greater comes first (default: 0)", priorityNumber)
    .option("--reject-limit <n>", "pause after so many rejected rows (default: 1000)", limitNumber)
    .addOption(new Option("--format <format>", "where the files' names do not tell it").choices([...FORMATS]))
    .option("--delimiter <character>", "of a CSV (default: ,)")
    .option("--columns <names>", "of a CSV without a header, with commas between them")
    .option("--null <text>", "what a CSV has where there is no value (default: nothing)")
    .option(
      "--reconcile <watermark>",
      "then delete, once confirmed, what the export lacks: JSON or a file of it, as `bootstrap watermark` prints",
    )
    .addOption(
      new Option(
        "--through <way>",
        "files of its own, or in turn with live events (default: by its size)",
      ).choices(["files", "queue"]),
    )
    .option("--detach", "do not follow it")
    .option("--dry-run", "say what would land and what would be refused; change nothing")
    .action(start);
}

async function start(options: StartOptions): Promise<void> {
  const asked = requestOf(options);
  const config = configOf(options);
  if (options.dryRun) {
    const check = await withStore(config, (store) =>
      withParts(config, (parts) => new JobDesk(store).dryRun(parts, asked)),
    );
    console.log(options.json ? JSON.stringify({ dryRun: true, ...check }) : checkText(check));
    if (check.refusals.length > 0) process.exitCode = EXIT.failed;
    return;
  }
  const job = await withStore(config, async (store) => {
    const desk = new JobDesk(store);
    const ordered = await desk.bootstrap((use) => withParts(config, use), asked, localUser());
    return options.detach ? ordered.job : follow(desk, ordered, options);
  });
  tell(job, options);
  if (!options.detach) process.exitCode = exitCodeOf(job);
}

/** What a source is checked against. */
async function withParts<T>(
  config: Config,
  use: (parts: Omit<CheckContext, "store">) => Promise<T>,
): Promise<T> {
  const registry = ProtoRegistry.load(config.protoDirs, config.protoDescriptors);
  const duck = await readingDuck();
  try {
    const { checkpointEvery } = config.table;
    return await use({ registry, duck, config, tableOptions: { checkpointEvery } });
  } finally {
    duck.close();
  }
}

/** Errors: TRB-CLI-USAGE, naming the option. */
function requestOf(options: StartOptions): BootstrapRequest {
  const { source, mapping, type, tenant, id, priority, rejectLimit, format, delimiter, columns } = options;
  const csv = { delimiter, columns: columns?.split(","), nullText: options.null };
  const given = {
    source,
    mapping: mapping === undefined ? undefined : readMapping(mapping),
    entityType: type,
    tenant,
    id,
    priority,
    rejectLimit,
    format,
    limits: limitsOf(options),
    through: options.through,
    reconcile: options.reconcile === undefined ? undefined : { watermark: readWatermark(options.reconcile) },
    csv: Object.values(csv).every((value) => value === undefined) ? undefined : csv,
  };
  const parsed = bootstrapRequest.safeParse(given);
  if (parsed.success) return parsed.data;
  throw new TributaryError("TRB-CLI-USAGE", wordsOf(parsed.error));
}

/** Errors: TRB-CLI-USAGE. */
function readMapping(file: string): unknown {
  try {
    return parseYaml(readFileSync(file, "utf8"));
  } catch (cause) {
    throw new TributaryError("TRB-CLI-USAGE", "--mapping: expected a file of YAML or JSON", { cause });
  }
}

/** Errors: TRB-CLI-USAGE. */
function readWatermark(given: string): unknown {
  try {
    return JSON.parse(given.trimStart().startsWith("{") ? given : readFileSync(given, "utf8"));
  } catch (cause) {
    const expected = "expected JSON, or a file of it, as `tributary bootstrap watermark` prints";
    throw new TributaryError("TRB-CLI-USAGE", `--reconcile: ${expected}`, { cause });
  }
}

function addVerifyCommand(group: Command): void {
  withLimits(withData(group.command("verify").argument("<id>")))
    .description("compare what a job has landed with its source again; ends with 1 where they differ")
    .option("--priority <n>", "-100 to 100; greater comes first (default: 0)", priorityNumber)
    .option("--detach", "do not follow it")
    .action(async (id: string, options: VerifyOptions) => {
      const { priority, detach } = options;
      const asked = verifyRequest.parse({ priority, limits: limitsOf(options) });
      const job = await withStore(configOf(options), async (store) => {
        const desk = new JobDesk(store);
        const { job: ordered } = await desk.verify(id, asked, localUser());
        return detach ? ordered : follow(desk, { job: ordered, wasThere: false }, options);
      });
      tell(job, options);
      if (!detach) process.exitCode = exitCodeOf(job);
    });
}

function follow(
  { jobs }: JobDesk,
  { job, wasThere }: { readonly job: Job; readonly wasThere: boolean },
  { json = false }: DataOptions,
): Promise<Job> {
  const { id } = job.order;
  if (!json) process.stderr.write(`${wasThere ? "it is there already" : "asked for"}: ${id}\n`);
  return followJob(jobs, id, `tributary bootstrap status ${id}`, json);
}

const wished = (id: string, wish: JobWish["wish"], options: DataOptions): Promise<Job> =>
  withStore(configOf(options), (store) => new JobDesk(store).wish(id, wish, localUser()));

function tell(job: Job, { json }: DataOptions): void {
  console.log(json ? JSON.stringify(jobJson(job)) : jobLines(job));
}
