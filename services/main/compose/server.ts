import type { Logger } from "pino";
import { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { openData } from "../../base/data-format.js";
import { errno, TributaryError } from "../../base/errors.js";
import { nodeFiles } from "../../base/files.js";
import { buildServer, type HttpServer } from "../../base/http.js";
import { Recent } from "../../base/recent.js";
import type { Traces } from "../../base/traces.js";
import { JobDesk } from "../../bulk/job-desk.js";
import type { ReportContext } from "../../bulk/report.js";
import { registerBulk } from "../../bulk/routes.js";
import { registerBus } from "../../bus/routes.js";
import { CONSUMER } from "../../ingest/pipeline.js";
import { Offloaded } from "../../offload/offloaded.js";
import { LakeCatalog } from "../../query/lake-catalog.js";
import { registerQuery } from "../../query/routes.js";
import { type IngestStatus, readIngestStatus } from "../../status/ingest-status.js";
import type { ObjectStore } from "../../storage/object-store.js";
import type { ChangeStreamWriter } from "../../stream/change-stream.js";
import { domainOf } from "../../stream/domains.js";
import { requireOpen } from "../../table/closing.js";
import type { Role } from "../../tenancy/grant.js";
import { requireRole } from "../../tenancy/http-auth.js";
import { KeySet } from "../../tenancy/key-sets.js";
import type { SigningKey } from "../../tenancy/signing-key.js";
import { signToken, TokenVerifier } from "../../tenancy/tokens.js";
import { UploadTickets } from "../../tenancy/upload-tickets.js";
import { merged, tellOfProcess } from "./exposition.js";
import { IngestSupervisor } from "./ingest-supervisor.js";
import { ProjectKeeper } from "./project-keeper.js";
import {
  makeDataFolder,
  openKey,
  openLog,
  openReader,
  openServerStore,
  openTraces,
  readingDuck,
} from "./runtime.js";
import { OpenStreams, streamKind } from "./streams.js";

export interface ServerParts {
  readonly bus: boolean;
  readonly query: boolean;
  /** Run ingest too, in a process of its own. */
  readonly ingest: boolean;
}

export interface RunningServer {
  readonly url: string;
  /** A token of this data folder's own key. */
  token(role: Role, tenants: "*" | readonly string[], expiresIn?: number): Promise<string>;
  /** Reads descriptors and models again: what fits as a whole takes the place of what was in force. */
  reload(): Promise<void>;
  /** Ends gracefully: answers what is in flight, lands what ingest has read. The rest is durable in the stream. */
  close(): Promise<void>;
}

const DAY = 24 * 3600;
/** Who asks /readyz needs no token: it asks the store no more often, and waits for it no longer (ms). */
const STATUS = { everyMs: 1_000, patienceMs: 250 };

/** One process that listens: bus, query or both, with or without ingest beside it. */
export async function startServer(config: Config, parts: ServerParts): Promise<RunningServer> {
  const log = openLog(config);
  const metrics = new Registry();
  tellOfProcess(metrics, "server");
  await makeDataFolder(config);
  await openData(nodeFiles, config.data);
  const key = await openKey(config);
  const closers: (() => Promise<unknown>)[] = [];
  const keySets = config.auth.jwks.map((settings) => new KeySet(settings, log, () => verifier.forget()));
  const verifier = new TokenVerifier(key, config.auth.audience, { keySets });
  for (const set of keySets) set.start();
  closers.push(async () => {
    for (const set of keySets) set.stop();
  });
  const traces = await openTraces(config, "tributary-bus");
  closers.push(() => traces.close());
  const { store, release } = await openServerStore(config, parts.query ? "query" : "bus", metrics);
  const project = await ProjectKeeper.open({ config, log, metrics, models: parts.query || parts.ingest });
  closers.push(() => project.close());
  const supervisor = parts.ingest ? new IngestSupervisor(config, project.current, log) : undefined;
  project.onChange((changed) => supervisor?.use(changed));
  const status = new Recent(() => readIngestStatus(store), STATUS.everyMs, STATUS.patienceMs);
  let server: HttpServer | undefined;
  let outgoing: OpenStreams<ChangeStreamWriter> | undefined;
  try {
    server = await buildServer({
      log,
      metrics: {
        contentType: metrics.contentType,
        metrics: async () => merged([await metrics.metrics(), (await supervisor?.metrics()) ?? ""]),
      },
      limits: config.http,
      guardMetrics: requireRole(verifier, "operator"),
      notReady: () => notReady(parts, supervisor, outgoing),
      readyDetails: async () => ({
        ...(supervisor === undefined ? {} : { ingest: supervisor.state }),
        ...(outgoing === undefined ? {} : { streams: Object.fromEntries(outgoing.states) }),
        ...(project.problem === undefined ? {} : { project: projectProblem(project.problem) }),
        quarantined: quarantined(await status.get()),
      }),
    });
    const service = { server, project, store, config, key, verifier, traces, metrics, log };
    if (parts.bus) {
      outgoing = await addBus(service);
      closers.push(() => outgoing!.close());
    }
    if (parts.query) {
      closers.push(await addQuery(service));
      await addBulk(service);
    }
    if (supervisor !== undefined) {
      // Beside listening: an ingest that cannot start is no reason to refuse events or questions.
      supervisor.start();
      closers.push(() => supervisor.stop());
    }
    const url = await listen(server, config);
    const running = server;
    return {
      url,
      token: (role, tenants, expiresIn = DAY) =>
        signToken(key, config.auth.audience, { subject: `local-${role}`, role, tenants, expiresIn }),
      reload: () => project.reload(),
      close: async () => {
        await running.drain();
        await closeAll([...closers, release]);
      },
    };
  } catch (error) {
    await supervisor?.stop();
    await server?.drain();
    await closeAll([...closers, release]).catch(() => undefined);
    throw error;
  }
}

/**
 * A server of ingest alone is of no use before ingest runs, and a bus alone without a stream; what serves something else
 * beside, or some domains, goes on.
 */
function notReady(
  { bus, query }: ServerParts,
  supervisor: IngestSupervisor | undefined,
  outgoing: OpenStreams<ChangeStreamWriter> | undefined,
): string | undefined {
  if (query) return undefined;
  if (bus) return [...(outgoing?.states.values() ?? [])].includes("open") ? undefined : "no stream is open";
  return supervisor === undefined || supervisor.ready ? undefined : supervisor.state;
}

/** /readyz is for everybody: files and SQL are for the log. */
const projectProblem = ({ code }: TributaryError) => ({
  code,
  remedy:
    "the newest descriptors or models do not fit and are not in force: see the log, or `tributary models check`",
});

/** What /readyz tells of tables that cannot go on. */
function quarantined(status: IngestStatus | undefined) {
  return (status?.tables ?? [])
    .filter(({ state }) => state === "quarantined")
    .map(({ kind, name, code, since, remedy }) => ({ kind, name, code, since, remedy }));
}

/** Errors: TRB-CONFIG when host or port cannot be had. */
async function listen(server: HttpServer, config: Config): Promise<string> {
  const { host, port } = config.http;
  try {
    return await server.listen(host, port);
  } catch (cause) {
    const reason = LISTEN_FAILURES[errno(cause) ?? ""];
    if (reason === undefined) throw cause;
    throw new TributaryError("TRB-CONFIG", `${reason}, found ${host}:${port}`, { cause });
  }
}

const LISTEN_FAILURES: Readonly<Record<string, string>> = {
  EADDRINUSE: "http.port: expected a free port (0 = any)",
  EACCES: "http.port: expected a port this user may listen on",
  ERR_SOCKET_BAD_PORT: "http.port: expected 0 to 65535",
  EADDRNOTAVAIL: "http.host: expected an address of this machine",
  ENOTFOUND: "http.host: expected an address of this machine",
};

/** Closes them all, one after the other; the first failure is thrown in the end. */
async function closeAll(closers: readonly (() => Promise<unknown>)[]): Promise<void> {
  const failures: unknown[] = [];
  // What is waited for, such as the end of query workers, may not keep this process alive by itself.
  const alive = setInterval(() => undefined, 1_000);
  for (const close of closers) await close().catch((error: unknown) => failures.push(error));
  clearInterval(alive);
  if (failures.length > 0) throw failures[0];
}

/** What bus and query are built from. */
interface ServiceParts {
  readonly server: HttpServer;
  readonly project: ProjectKeeper;
  readonly store: ObjectStore;
  readonly config: Config;
  readonly key: SigningKey;
  readonly verifier: TokenVerifier;
  readonly traces: Traces;
  readonly metrics: Registry;
  readonly log: Logger;
}

/** Resolves to the streams that events go out by; closing them closes the bus. */
async function addBus({
  server,
  project,
  store,
  ...rest
}: ServiceParts): Promise<OpenStreams<ChangeStreamWriter>> {
  const { log, config, key, metrics } = rest;
  const kind = await streamKind(config, metrics);
  const streams = new OpenStreams(kind, (name) => kind.writer(name), log);
  const registry = () => project.current.registry;
  await streams.want(registry().entityTypes());
  project.onChange(({ registry: changed }) => streams.wantSoon(changed.entityTypes()));
  const { keepMs, presign } = config.offload;
  const offloaded = new Offloaded(store, keepMs, presign, () => requireOpen(store));
  await registerBus(server.app, {
    ...rest,
    streams,
    offloaded,
    tickets: new UploadTickets(key, config.auth.audience),
    registry,
    status: () => readIngestStatus(store),
  });
  return streams;
}

/** Resolves to what closes it. */
async function addQuery({ server, project, store, ...rest }: ServiceParts): Promise<() => Promise<void>> {
  const { config, log, metrics } = rest;
  const duck = await readingDuck();
  const kind = await streamKind(config, metrics);
  const streams = new OpenStreams(kind, (name) => kind.reader(name), log);
  await streams.want(project.current.registry.entityTypes());
  project.onChange(({ registry }) => streams.wantSoon(registry.entityTypes()));
  const catalog = new LakeCatalog({
    store,
    duck,
    table: { checkpointEvery: config.table.checkpointEvery },
    streams,
    consumer: CONSUMER,
    models: () => project.current.models,
  });
  const query = await registerQuery(server.app, { ...rest, catalog });
  return async () => {
    await query.close();
    await streams.close();
    duck.close();
  };
}

/** Where operators ask for bulk jobs; what runs these is beside ingest, wherever that is. */
async function addBulk({ server, project, store, verifier, config }: ServiceParts): Promise<void> {
  const { checkpointEvery } = config.table;
  const lent = async <T>(
    use: (parts: Pick<ReportContext, "duck" | "tableOptions">) => Promise<T>,
  ): Promise<T> => {
    const duck = await readingDuck();
    try {
      return await use({ duck, tableOptions: { checkpointEvery } });
    } finally {
      duck.close();
    }
  };
  await registerBulk(server.app, {
    desk: new JobDesk(store),
    verifier,
    reading: async (entityType, use) => {
      const reader = await openReader(config, domainOf(entityType));
      try {
        return await use(reader);
      } finally {
        await reader.close();
      }
    },
    checking: (use) => lent((parts) => use({ ...parts, registry: project.current.registry, config })),
    planning: (use) => lent((parts) => use({ ...parts, models: project.current.models })),
  });
}
