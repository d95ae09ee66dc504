import { existsSync, rmSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import pino, { type Logger } from "pino";
import type { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { checkData, openData } from "../../base/data-format.js";
import { Duck } from "../../base/duckdb.js";
import { hasCode, TributaryError } from "../../base/errors.js";
import { nodeFiles } from "../../base/files.js";
import { Once } from "../../base/once.js";
import { layout } from "../../base/paths.js";
import { acquireLock, type ProcessLock } from "../../base/process-lock.js";
import { NO_TRACES, type Traces } from "../../base/traces.js";
import { Offloaded } from "../../offload/offloaded.js";
import type { PayloadSource } from "../../offload/payload-of.js";
import { clearCopies } from "../../storage/object-cache.js";
import type { ObjectStore } from "../../storage/object-store.js";
import type { ChangeStreamReader } from "../../stream/change-stream.js";
import { EmbeddedLogReader } from "../../stream/embedded/reader.js";
import { KEY_FILE, SigningKey } from "../../tenancy/signing-key.js";
import { openStore } from "./lake-store.js";
import { streamKind } from "./streams.js";

/** What the composition roots share: how a configuration becomes adapters. */

/** Logs go to standard error, so that what a command answers stays readable for programs. */
export const openLog = (config: Config): Logger => pino({ level: config.log.level }, pino.destination(2));

const STOPPING = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Whether there may be a lake: of one that is elsewhere, its store knows. */
export const mayHaveLake = ({ storage, data }: Config): boolean =>
  storage.kind !== "files" || existsSync(layout(data).lake);

/**
 * For a command beside the services: makes no lake where there is none, and leaves neither staged files nor copies
 * behind, also when it is stopped. Errors: TRB-CLI-USAGE, TRB-DATA-VERSION.
 */
export async function withStore<T>(config: Config, use: (store: ObjectStore) => Promise<T>): Promise<T> {
  if (!mayHaveLake(config)) {
    throw new TributaryError("TRB-CLI-USAGE", "--data: expected a data folder with a lake, found none there");
  }
  await checkData(nodeFiles, config.data);
  await makeDataFolder(config);
  return withOpened(config, `cli-${process.pid}`, use);
}

/** As `withStore`, of a lake that need not be there yet. */
export async function withNewStore<T>(config: Config, use: (store: ObjectStore) => Promise<T>): Promise<T> {
  await makeDataFolder(config);
  await openData(nodeFiles, config.data);
  return withOpened(config, `cli-${process.pid}-new`, use);
}

async function withOpened<T>(
  config: Config,
  user: string,
  use: (store: ObjectStore) => Promise<T>,
): Promise<T> {
  const store = await openStore(config, user);
  const clear = () => {
    rmSync(store.staging, { recursive: true, force: true });
    clearCopies(layout(config.data).cache, user);
  };
  const stopped = (signal: NodeJS.Signals) => {
    clear();
    // The listener is gone by now, so that the signal does what it does to a process without one.
    process.kill(process.pid, signal);
  };
  for (const signal of STOPPING) process.once(signal, stopped);
  try {
    return await use(store);
  } finally {
    for (const signal of STOPPING) process.off(signal, stopped);
    clear();
  }
}

/**
 * For a server, of which several may share a data folder. Copies of remote objects are counted and let go by one process:
 * each has a place of its own for them. Files that are staged have names of their own.
 */
export async function openServerStore(
  config: Config,
  name: string,
  metrics?: Registry,
): Promise<{ readonly store: ObjectStore; release(): Promise<void> }> {
  if (config.storage.kind === "files") {
    return { store: await openStore(config, name, metrics), release: async () => undefined };
  }
  const { folder, lock } = await freePlace(config, name);
  try {
    return { store: await openStore(config, folder, metrics), release: () => lock.release() };
  } catch (error) {
    await lock.release();
    throw error;
  }
}

/**
 * The one stream for all domains, or that of one domain, which must be there. Errors: TRB-CONFIG, also where no domain is
 * named and each has its own.
 */
export async function openReader(config: Config, domain?: string): Promise<ChangeStreamReader> {
  const { kind, kafka, kinesis } = config.stream;
  const lacks = (setting: string) =>
    new TributaryError(
      "TRB-CONFIG",
      `stream.${setting}: expected one for all domains, or one domain to be named, found neither`,
    );
  if (domain === undefined && kind === "kafka" && kafka.topic === undefined) throw lacks("kafka.topic");
  if (domain === undefined && kind === "kinesis" && kinesis.stream === undefined)
    throw lacks("kinesis.stream");
  // A log that was made here would lie in a folder that others can read, and nobody would write to it.
  if (kind === "embedded") return EmbeddedLogReader.open({ folder: layout(config.data).stream });
  const streams = await streamKind(config);
  return streams.reader(streams.nameOf(domain === undefined ? "" : `${domain}.`));
}

/** Payloads that did not travel with their events. The lake's store is opened with the first of them. */
export function openPayloads(config: Config): PayloadSource {
  const opened = new Once(
    async () => new Offloaded(await openStore(config, `cli-${process.pid}-follower`), config.offload.keepMs),
  );
  return { fetch: async (reference) => (await opened.get()).fetch(reference) };
}

/** What OpenTelemetry needs is loaded where it is asked for, and nowhere else. */
export async function openTraces({ tracing }: Config, service: string): Promise<Traces> {
  if (tracing.endpoint === undefined) return NO_TRACES;
  const { otlpTraces } = await import("./traces.js");
  return otlpTraces(tracing.endpoint, service);
}

export async function openKey(config: Config): Promise<SigningKey> {
  if (config.auth.keyFile !== undefined) return SigningKey.open(config.auth.keyFile);
  const { keys } = layout(config.data);
  await makeDataFolder(config);
  await mkdir(keys, { recursive: true, mode: 0o700 });
  return SigningKey.openOrCreate(keys);
}

/** Whether `openKey` would find a key, not make one. */
export const hasKey = (config: Config): boolean =>
  config.auth.keyFile !== undefined || existsSync(join(layout(config.data).keys, KEY_FILE));

/** It holds every tenant's rows: others on the machine see it only once its owner lets them. */
export async function makeDataFolder({ data }: Config): Promise<void> {
  await mkdir(data, { recursive: true, mode: 0o700 });
}

export async function lockData(config: Config, name: string): Promise<ProcessLock> {
  await makeDataFolder(config);
  return acquireLock(nodeFiles, config.data, name);
}

/** A process's part of the data folder, which is nobody else's until it is released. */
export interface Place {
  /** Of its folders for staged, spilled and cached files. */
  readonly folder: string;
  readonly lock: ProcessLock;
}

/** Processes of one kind that share one data folder's disk. */
const MOST_PLACES = 64;

/** The first place of this name that is free: NAME, NAME-2, … Errors: TRB-STREAM-LOCKED. */
export async function freePlace(config: Config, name: string): Promise<Place> {
  for (let number = 1; ; number++) {
    const folder = number === 1 ? name : `${name}-${number}`;
    try {
      return { folder, lock: await lockData(config, folder) };
    } catch (error) {
      const isTaken = hasCode(error, "TRB-STREAM-LOCKED");
      if (!isTaken || number === MOST_PLACES) throw error;
    }
  }
}

/** For reading tables only. */
export const readingDuck = (): Promise<Duck> => Duck.create({ memoryBytes: 1024 * 1024 * 1024 });
