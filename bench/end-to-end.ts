import { loadConfig } from "../services/base/config.js";
import { CONSUMER } from "../services/ingest/pipeline.js";
import { openKey, openReader } from "../services/main/compose/runtime.js";
import { caughtUp } from "../services/stream/caught-up.js";
import type { Role } from "../services/tenancy/grant.js";
import { signToken } from "../services/tenancy/tokens.js";
import { withRefined } from "./in-step.js";
import type { LoadOrder, LoadReport } from "./load.js";
import { type BenchServer, Load } from "./processes.js";

/** What a run took, from the first POST to the refined commit of the last event. */
export interface EndToEnd {
  readonly seconds: number;
  /** CPU microseconds an event. */
  readonly cpu: { readonly bus: number; readonly ingest: number; readonly load: number };
  readonly report: LoadReport;
}

export const tokenFor = async (data: string, role: Role) =>
  signToken(await openKey(loadConfig({ data })), "tributary", {
    subject: "bench",
    role,
    tenants: "*",
    expiresIn: 3600,
  });

/** The load that figures of remote streams and stores are taken with. */
export const orderTo = async (bus: BenchServer, data: string, events: number) => ({
  url: bus.url,
  token: await tokenFor(data, "producer"),
  protoDirs: loadConfig().protoDirs,
  events,
  bodyEvents: 100,
  eventBytes: 700,
  connections: 16,
  seed: 7,
  tenants: 500,
  entities: 300_000,
});

/**
 * Resolves when all that the bus has acknowledged is in raw and refined. `env`: where stream and lake are, as this process
 * reaches them.
 */
export async function landed(data: string, env: NodeJS.ProcessEnv, lookMs: number, over = {}): Promise<void> {
  const config = loadConfig({ data, ...over }, { env });
  const pause = () => new Promise((resolve) => setTimeout(resolve, lookMs));
  const reader = await openReader(config);
  while (!(await caughtUp(reader, CONSUMER))) await pause();
  await reader.close();
  // What the stream may forget is in raw; a model may still be at it.
  await withRefined(config, async (inStep) => {
    while (!(await inStep())) await pause();
  });
}

/** `tributary up`, a load as fast as it is taken, and the wait for the rest. */
export async function endToEnd(
  up: BenchServer,
  data: string,
  order: LoadOrder,
  env: NodeJS.ProcessEnv,
  lookMs: number,
): Promise<EndToEnd> {
  const load = await Load.prepare(order);
  const before = up.cpu();
  const started = performance.now();
  const report = await load.run();
  await landed(data, env, lookMs);
  const seconds = (performance.now() - started) / 1000;
  const after = up.cpu();
  const perEvent = (used: number) => (used * 1e6) / report.events;
  return {
    seconds,
    report,
    cpu: {
      bus: perEvent(after.own - before.own),
      ingest: perEvent(after.below - before.below),
      load: perEvent(report.cpuSeconds),
    },
  };
}
