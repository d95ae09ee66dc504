import type { Command } from "commander";
import type { Registry } from "prom-client";
import { buildServer } from "../../base/http.js";
import { requireRole } from "../../tenancy/http-auth.js";
import { TokenVerifier } from "../../tenancy/tokens.js";
import { runIngest } from "../ingest-process.js";
import { openKey, openLog } from "../runtime.js";
import { type ServerParts, startServer } from "../server.js";
import { configOf, type ServerOptions, withServer } from "./options.js";

export function addServerCommands(program: Command): void {
  const server = (name: string, description: string, parts: ServerParts) =>
    withServer(program.command(name).description(description)).action((options: ServerOptions) =>
      serve(options, parts),
    );
  server("up", "everything on one machine: bus, ingest and query", { bus: true, query: true, ingest: true });
  server("bus", "the replication bus alone", { bus: true, query: false, ingest: false });
  server("query", "the query service alone", { bus: false, query: true, ingest: false });
  withServer(program.command("ingest").description("ingest alone, from the stream into the lake")).action(
    ingest,
  );
}

async function serve(options: ServerOptions, parts: ServerParts): Promise<void> {
  const config = configOf(options);
  const running = await startServer(config, parts);
  announce(options, running.url);
  await untilToldToStop();
  await running.close();
}

async function ingest(options: ServerOptions): Promise<void> {
  const config = configOf(options);
  const log = openLog(config);
  const running = await runIngest(config);
  const verifier = new TokenVerifier(await openKey(config), config.auth.audience);
  let behind = false;
  const watch = setInterval(() => void running.pipeline.behind().then((now) => (behind = now)), 1_000);
  const server = await buildServer({
    log,
    metrics: running.metrics as Registry,
    guardMetrics: requireRole(verifier, "operator"),
    notReady: () => (behind ? "a model catches up from raw" : undefined),
  });
  announce(options, await server.listen(config.http.host, config.http.port));
  const ended = running.done.then(
    () => undefined,
    (error: unknown) => error,
  );
  const failure = await Promise.race([untilToldToStop(), ended]);
  clearInterval(watch);
  running.stop();
  await server.drain();
  await ended;
  if (failure !== undefined) throw failure;
}

function announce(options: ServerOptions, url: string): void {
  console.log(options.json ? JSON.stringify({ url, pid: process.pid }) : `listening on ${url}`);
}

function untilToldToStop(): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => resolve());
  });
}
