import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { TributaryError } from "../../base/errors.js";
import { duration, grouped, printable } from "../../base/in-words.js";
import { packageRoot } from "../../base/paths.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import type { Role } from "../../tenancy/grant.js";
import { publishBodies } from "../client/publish.js";
import type { Console } from "../client/publish-report.js";
import { ProgressBar } from "../terminal/progress-bar.js";
import { textTable } from "../terminal/text-table.js";
import { openRepository } from "../workload/git-repository.js";
import { Analyst, type Answer, type Comparison, holds, type Scenario } from "./demo-scenario.js";
import { GitScenario } from "./demo-scm.js";
import { TrackerScenario } from "./demo-tracker.js";

/** A whole stack that listens; `close` ends it gracefully. */
export interface DemoStack {
  readonly url: string;
  token(role: Role, tenants: "*" | readonly string[]): Promise<string>;
  close(): Promise<void>;
}

export interface DemoOptions {
  /** What to publish the history of (default: where the command is run). */
  readonly repo?: string | undefined;
  readonly domain?: "scm" | "tracker" | undefined;
  /** Events of the generator (default: 20,000). */
  readonly events?: number | undefined;
  /** End when all is shown; otherwise it runs until the signal. */
  readonly exit?: boolean | undefined;
  /** 0 = any free one (default). */
  readonly port?: number | undefined;
  /** A folder that is empty or not there; kept. Default: a temporary one, removed in the end. */
  readonly data?: string | undefined;
  readonly json?: boolean | undefined;
  /** Accepted events that cannot be queried after so many milliseconds are taken for lost (default: a minute). */
  readonly patienceMs?: number | undefined;
  readonly signal: AbortSignal;
  readonly startStack: (options: { readonly data: string; readonly port: number }) => Promise<DemoStack>;
}

const GENERATED_EVENTS = 20_000;
const PATIENCE_MS = 60_000;
const SHOWN_DIFFERENCES = 10;

/** What the demo saw; printed as it is with --json. */
export interface DemoReport {
  readonly domain: string;
  readonly source: string;
  readonly tenants: readonly string[];
  readonly accepted: number;
  readonly rejected: number;
  readonly publishMs: number;
  readonly eventsPerSecond: number;
  /** From the last answer of the bus until everything could be queried. */
  readonly queryableMs: number;
  /** The way of the last change alone, with the stack idle. */
  readonly lastChange: { readonly acknowledgedMs: number; readonly queryableMs: number } | undefined;
  readonly answers: readonly Answer[];
  readonly comparison: Comparison;
  readonly ok: boolean;
}

/**
 * Shows the whole of Tributary on a fresh data folder: publish, wait, ask, compare. Resolves to the exit code: 0 when
 * the lake holds what the source says, 1 when it does not, 130 when it was stopped on the way.
 * Errors: TRB-CLI-USAGE, TRB-CLI-SOURCE, and what publishing and asking throw.
 */
export async function runDemo(
  options: DemoOptions,
  io: Console = { out: process.stdout, err: process.stderr },
): Promise<number> {
  const { signal, exit = false, json = false } = options;
  const say = (text: string) => void (json ? undefined : io.out.write(`${text}\n`));
  const scenario = await chooseScenario(options, (text) => void io.err.write(`${text}\n`));
  const data = await freshFolder(options.data);
  let stack: DemoStack | undefined;
  try {
    const started = performance.now();
    stack = await options.startStack({ data, port: options.port ?? 0 });
    say(`The stack runs at ${stack.url} (started in ${duration(performance.now() - started)}).`);
    say(`Publishing ${scenario.source}.`);
    const bar = json ? undefined : new ProgressBar(io.err, "publishing");
    const report = await run(scenario, stack, {
      signal,
      bar,
      patienceMs: options.patienceMs ?? PATIENCE_MS,
    });
    if (!json) tell(report, say);
    const stays = !exit && !signal.aborted;
    if (json) {
      const reach = stays ? { url: stack.url, tokens: await tokensOf(stack, scenario), data } : {};
      io.out.write(`${JSON.stringify({ ...report, ...reach })}\n`);
    } else if (stays) await invite(stack, scenario, data, options.data === undefined, say);
    if (stays) await untilAborted(signal);
    return report.ok ? 0 : 1;
  } catch (error) {
    if (signal.aborted) return 130;
    throw error;
  } finally {
    await stack?.close();
    if (options.data === undefined) await rm(data, { recursive: true, force: true });
  }
}

async function chooseScenario(options: DemoOptions, warn: (text: string) => void): Promise<Scenario> {
  const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
  const generated = () => new TrackerScenario(registry, options.events ?? GENERATED_EVENTS);
  if (options.domain === "tracker") return generated();
  const path = options.repo ?? ".";
  const repository = await openRepository(path);
  if (repository?.head !== undefined) return new GitScenario(repository, registry);
  const reason =
    repository === undefined ? "is no git repository, or git is not installed" : "has no commits yet";
  warn(`${printable(path)} ${reason}: showing generated data instead.`);
  return generated();
}

async function freshFolder(data: string | undefined): Promise<string> {
  if (data === undefined) return mkdtemp(join(tmpdir(), "tributary-demo-"));
  await mkdir(data, { recursive: true });
  if ((await readdir(data)).length > 0) {
    throw new TributaryError("TRB-CLI-USAGE", "--data: expected an empty folder, or none yet");
  }
  return data;
}

async function run(
  scenario: Scenario,
  stack: DemoStack,
  { signal, bar, patienceMs }: { signal: AbortSignal; bar: ProgressBar | undefined; patienceMs: number },
): Promise<DemoReport> {
  const token = await stack.token("producer", scenario.tenants);
  const analyst = new Analyst(stack.url, await stack.token("analyst", scenario.tenants));
  const { ask } = analyst;
  const target = { url: stack.url, token, signal };
  try {
    let fraction = 0;
    let count = 0;
    const bulk = await publishBodies({
      ...target,
      bodies: scenario.bodies((made) => {
        fraction = made;
      }),
      onAnswer: ({ accepted }) => {
        count += accepted;
        bar?.update({ fraction, count });
      },
    });
    bar?.end();
    if (bulk.rejected > 0) throw rejected(bulk.rejectedByCode);
    const queryableMs = await waitFor(() => scenario.arrived(ask), BULK_PAUSE_MS, patienceMs, signal);
    const last = scenario.last();
    let lastChange: DemoReport["lastChange"];
    let accepted = bulk.accepted;
    if (last !== undefined) {
      const sent = await publishBodies({ ...target, bodies: [last] });
      if (sent.rejected > 0) throw rejected(sent.rejectedByCode);
      accepted += sent.accepted;
      const waited = await waitFor(() => scenario.settled(ask), LAST_PAUSE_MS, patienceMs, signal);
      lastChange = { acknowledgedMs: round(sent.elapsedMs), queryableMs: round(waited) };
    }
    const answers = await scenario.answers(ask);
    const comparison = await scenario.compare(ask);
    return {
      domain: scenario.domain,
      source: scenario.source,
      tenants: scenario.tenants,
      accepted,
      rejected: 0,
      publishMs: round(bulk.elapsedMs),
      eventsPerSecond: Math.round((bulk.accepted / Math.max(bulk.elapsedMs, 1)) * 1000),
      queryableMs: round(queryableMs),
      lastChange,
      answers,
      comparison: { ...comparison, differences: comparison.differences.slice(0, SHOWN_DIFFERENCES) },
      ok: comparison.differences.length === 0,
    };
  } finally {
    analyst.close();
  }
}

/** Milliseconds between two questions: while a bulk is on its way they would only be in its way. */
const BULK_PAUSE_MS = 50;
const LAST_PAUSE_MS = 5;

/** Milliseconds until `question` holds. After `patienceMs` it gives up: the comparison will tell what is missing. */
async function waitFor(
  question: () => Promise<boolean>,
  pauseMs: number,
  patienceMs: number,
  signal: AbortSignal,
): Promise<number> {
  const started = performance.now();
  while (!(await holds(question))) {
    signal.throwIfAborted();
    if (performance.now() - started > patienceMs) break;
    await sleep(pauseMs);
  }
  return performance.now() - started;
}

function rejected(byCode: Readonly<Record<string, number>>): TributaryError {
  const codes = Object.entries(byCode).map(([code, count]) => `${count} with ${code}`);
  return new TributaryError("TRB-INTERNAL", `the bus rejected events of the demo: ${codes.join(", ")}`);
}

function tell(report: DemoReport, say: (text: string) => void): void {
  const { answers, comparison, lastChange } = report;
  for (const { title, columns, rows } of answers) {
    say(`\n${title}`);
    say(rows.length === 0 ? "(none)" : textTable(columns, rows, { maxWidth: 48 }));
  }
  const rate = `${grouped(report.eventsPerSecond)} events/s`;
  say(`\n${grouped(report.accepted)} events, published in ${duration(report.publishMs)} (${rate}),`);
  say(`all queryable ${duration(report.queryableMs)} after the last of them was acknowledged.`);
  if (lastChange !== undefined) {
    const { acknowledgedMs, queryableMs } = lastChange;
    say(
      `One more commit: durable after ${duration(acknowledgedMs)}, queryable ${duration(queryableMs)} later.`,
    );
  }
  const { what, expected, found, differences } = comparison;
  say(`\nCompared ${what}: expected ${grouped(expected)}, found ${grouped(found)}.`);
  for (const difference of differences) say(`  ${printable(difference)}`);
  say(report.ok ? "They are the same." : "They differ.");
}

async function tokensOf(stack: DemoStack, scenario: Scenario): Promise<Record<string, string>> {
  const tenant = scenario.tenants[0]!;
  return { analyst: await stack.token("analyst", [tenant]), producer: await stack.token("producer", "*") };
}

async function invite(
  stack: DemoStack,
  scenario: Scenario,
  data: string,
  temporary: boolean,
  say: (text: string) => void,
): Promise<void> {
  const { analyst, producer } = await tokensOf(stack, scenario);
  const example = scenario.example.replaceAll('"', '\\"');
  say(`
It keeps running. API page: ${stack.url}/docs   data folder: ${data}
Try, in another terminal:

  export TRIBUTARY_URL=${stack.url}
  export TRIBUTARY_TOKEN=${analyst}

  npm run -s tributary -- sql "${example}"
  curl -s $TRIBUTARY_URL/v1/query -H "authorization: Bearer $TRIBUTARY_TOKEN" \\
    -H "content-type: application/json" -d '${JSON.stringify({ sql: scenario.example })}'

The token above reads tenant ${scenario.tenants[0]}. To publish events of your own:

  npm run -s tributary -- publish events.ndjson --token ${producer}

Ctrl-C ends it${temporary ? " and removes its data folder" : ""}.`);
}

async function untilAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  // A listener alone does not keep a process alive; the stack's server does.
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

const round = (milliseconds: number): number => Math.round(milliseconds * 10) / 10;
