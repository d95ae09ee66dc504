import { once } from "node:events";
import type { Command } from "commander";
import { type ServerParts, startServer } from "../compose/server.js";
import { configOf, type ServerOptions, withServer } from "./options.js";
import { stopSignal } from "./stop-signal.js";

export function addServerCommands(program: Command): void {
  const server = (name: string, description: string, parts: ServerParts) =>
    withServer(program.command(name).description(description)).action((options: ServerOptions) =>
      serve(options, parts),
    );
  server("up", "everything on one machine: bus, ingest and query", { bus: true, query: true, ingest: true });
  server("bus", "the replication bus alone", { bus: true, query: false, ingest: false });
  server("query", "the query service alone", { bus: false, query: true, ingest: false });
  server("ingest", "ingest alone, from the stream into the lake", {
    bus: false,
    query: false,
    ingest: true,
  }).option("--domain <name...>", "only the streams of these product domains (default: all)");
}

async function serve(options: ServerOptions, parts: ServerParts): Promise<void> {
  // Before anything starts: as the first process of a container it would not hear a signal that nobody listens for.
  const stop = stopSignal();
  const running = await startServer(configOf(options), parts);
  console.log(
    options.json ? JSON.stringify({ url: running.url, pid: process.pid }) : `listening on ${running.url}`,
  );
  // The hang-up of a terminal ends it, as it ends everything else there.
  if (!process.stdin.isTTY) process.on("SIGHUP", () => void running.reload());
  if (!stop.aborted) await once(stop, "abort");
  await running.close();
}
