import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { Registry } from "prom-client";
import { type Config, loadConfig } from "../../services/base/config.js";
import { buildServer, type HttpServer } from "../../services/base/http.js";
import { packageRoot } from "../../services/base/paths.js";
import { NO_TRACES, type Traces } from "../../services/base/traces.js";
import { registerBus } from "../../services/bus/routes.js";
import { ProtoRegistry } from "../../services/contracts/registry.js";
import { Offloaded } from "../../services/offload/offloaded.js";
import type { IngestStatus } from "../../services/status/ingest-status.js";
import { FileStore } from "../../services/storage/file-store.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import type { ChangeStreamWriter } from "../../services/stream/change-stream.js";
import type { Streams } from "../../services/stream/domains.js";
import { requireOpen } from "../../services/table/closing.js";
import { requireRole } from "../../services/tenancy/http-auth.js";
import { SigningKey } from "../../services/tenancy/signing-key.js";
import { signToken, type TokenInit, TokenVerifier } from "../../services/tenancy/tokens.js";
import { UploadTickets } from "../../services/tenancy/upload-tickets.js";
import { MemoryStream } from "./memory-stream.js";

export const testRegistry = ProtoRegistry.load([join(packageRoot, "proto")]);

export interface TestBus {
  readonly server: HttpServer;
  readonly stream: MemoryStream;
  /** Where large payloads go. */
  readonly store: ObjectStore;
  readonly key: SigningKey;
  /** An Authorization header; by default of a producer for all tenants. */
  bearer(token?: Partial<TokenInit>): Promise<string>;
  close(): Promise<void>;
}

export interface TestBusOptions {
  readonly notReady?: () => string | undefined;
  readonly http?: Partial<Config["http"]>;
  readonly status?: () => Promise<IngestStatus | undefined>;
  /** Wraps the store of large payloads. */
  readonly store?: (inner: ObjectStore) => ObjectStore;
  readonly traces?: Traces;
  /** By domain, instead of one for all. */
  readonly streams?: Streams<ChangeStreamWriter>;
}

/** A bus on a stream in memory, with everything else real. */
export async function startTestBus(
  limits: Partial<Config["bus"]> = {},
  {
    notReady,
    http = {},
    status = async () => undefined,
    streams,
    store: wrap,
    traces = NO_TRACES,
  }: TestBusOptions = {},
): Promise<TestBus> {
  const folder = mkdtempSync(join(tmpdir(), "bus-"));
  const key = await SigningKey.openOrCreate(join(folder, "keys"));
  const verifier = new TokenVerifier(key, "tributary");
  const metrics = new Registry();
  const log = pino({ level: "silent" });
  const stream = new MemoryStream();
  const inner = await FileStore.open({ folder: join(folder, "lake"), staging: join(folder, "staging") });
  const store = wrap?.(inner) ?? inner;
  const config = loadConfig({ bus: limits, http }, { env: {} });
  const server = await buildServer({
    log,
    limits: config.http,
    metrics,
    guardMetrics: requireRole(verifier, "operator"),
    ...(notReady && { notReady }),
  });
  await registerBus(server.app, {
    traces,
    tickets: new UploadTickets(key, "tributary"),
    offloaded: new Offloaded(store, 2 * 3600_000, true, () => requireOpen(store)),
    streams: streams ?? { nameOf: () => stream.name, stream: () => stream },
    registry: () => testRegistry,
    verifier,
    config,
    metrics,
    log,
    status,
  });
  return {
    server,
    stream,
    store,
    key,
    bearer: async (token = {}) =>
      `Bearer ${await signToken(key, "tributary", { role: "producer", tenants: "*", subject: "test", expiresIn: 60, ...token })}`,
    close: async () => {
      await server.drain();
      rmSync(folder, { recursive: true });
    },
  };
}
