import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import { pino } from "pino";
import { Registry } from "prom-client";
import protobuf from "protobufjs";
import { type Config, loadConfig } from "../../services/base/config.js";
import { rowsOf } from "../../services/base/duckdb.js";
import { type FileOps, nodeFiles } from "../../services/base/files.js";
import { Retry } from "../../services/base/retry.js";
import { encodeEvent } from "../../services/contracts/encode-event.js";
import type { IngestContext } from "../../services/ingest/context.js";
import { EventBatch } from "../../services/ingest/event-batch.js";
import { openContext } from "../../services/ingest/ingest.js";
import { Lane } from "../../services/ingest/lane.js";
import type { Project } from "../../services/ingest/project.js";
import { rawRoot } from "../../services/ingest/raw-table.js";
import type { Target } from "../../services/ingest/target.js";
import { FileStore } from "../../services/storage/file-store.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { DeltaTable } from "../../services/table/delta-table.js";
import { withScan } from "../../services/table/scan.js";
import { xxh64 } from "./oracle-hash.js";

/** A whole lake in a temporary folder, for tests of the table engine and of ingest: no stream, no server. */

export const THING = "t.v1.Thing";
/** No model is about it. */
export const NOTE = "t.v1.Note";
const PROTO = `syntax = "proto3";
package t.v1;
import "google/protobuf/timestamp.proto";
message Thing {
  string name = 1;
  int64 amount = 2;
  bool hidden = 3;
  string number = 4;
  repeated string labels = 5;
  google.protobuf.Timestamp at = 6;
  optional double ratio = 7;
  // Traps for models that mistake them for the event's own.
  string tenant_id = 8;
  string entity_id = 9;
}
message Note {
  string text = 1;
}
`;
const SOURCES = `version: 2
sources:
  - name: raw
    tables: [{ name: t.v1.Thing }]
`;
const CONFIG = "{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}\n";
const FROM = "from {{ source('raw', 't.v1.Thing') }}";

/** Every column of the model is compared with the oracle; hidden things are filtered out. */
export const THINGS_SQL = `select tenant_id, entity_id, operation, version, occurred_at, payload.name as name,
  payload.amount as amount, payload.labels as labels ${FROM} where not payload.hidden`;
/** As THINGS_SQL, with a cast that some events break. */
export const CAST_SQL = `select tenant_id, entity_id, version, cast(payload.number as integer) as number ${FROM}`;

/** Nothing in these tests depends on what survives a power loss: syncs would only make them slow. */
export const unsyncedFiles: FileOps = {
  ...nodeFiles,
  async open(path, how) {
    const file = await nodeFiles.open(path, how);
    return {
      read: (into, at) => file.read(into, at),
      write: (from, at) => file.write(from, at),
      truncate: (bytes) => file.truncate(bytes),
      dataSync: async () => undefined,
      size: () => file.size(),
      close: () => file.close(),
    };
  },
  syncFolder: async () => undefined,
};

export interface LakeOptions {
  /** "things" → its SQL, without the config line. */
  readonly models?: Readonly<Record<string, string>>;
  readonly schema?: string;
  readonly keyIndexBytes?: number;
  readonly checkpointEvery?: number;
  readonly compactAfterFiles?: number;
  /** Events after which a replay moves positions. */
  readonly rangeEvents?: number;
  /** Wraps the store, to make it fail. */
  readonly store?: (inner: ObjectStore) => ObjectStore;
  readonly ingest?: Partial<Config["ingest"]>;
  /** Where exports lie, by name. */
  readonly sources?: Readonly<Record<string, string>>;
}

/** Writes a dbt project; `models` by "<table>", all in the domain "t". */
export function writeProject(
  folder: string,
  models: Readonly<Record<string, string>>,
  schema?: string,
): void {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(join(folder, "models", "t"), { recursive: true });
  writeFileSync(join(folder, "models", "sources.yml"), SOURCES);
  if (schema !== undefined) writeFileSync(join(folder, "models", "t", "schema.yml"), schema);
  for (const [name, sql] of Object.entries(models)) {
    writeFileSync(join(folder, "models", "t", `${name}.sql`), CONFIG + sql);
  }
}

export function writeProto(folder: string): string {
  mkdirSync(join(folder, "t", "v1"), { recursive: true });
  writeFileSync(join(folder, "t", "v1", "thing.proto"), PROTO);
  return folder;
}

export const fileStore = (folder: string): Promise<FileStore> =>
  FileStore.open({ folder: join(folder, "lake"), staging: join(folder, "staging"), files: unsyncedFiles });

export const temporaryFolder = (): string => mkdtempSync(join(tmpdir(), "tributary-lake-"));

/** By models and schema: reading them starts protoc, which takes longer than many a test. */
const projects = new Map<string, Project>();

export class Lake {
  private constructor(
    readonly folder: string,
    private options: LakeOptions,
    public context: IngestContext,
  ) {}

  private opened: Lane | undefined;

  static async create(options: LakeOptions = {}): Promise<Lake> {
    const folder = temporaryFolder();
    return new Lake(folder, options, await Lake.contextOf(folder, options));
  }

  /** A second process, as it were, on the same data. */
  async twin(other: Partial<LakeOptions> = {}): Promise<Lake> {
    const options = { ...this.options, ...other };
    return new Lake(this.folder, options, await Lake.contextOf(this.folder, options));
  }

  private static async contextOf(folder: string, options: LakeOptions): Promise<IngestContext> {
    const key = JSON.stringify([options.models, options.schema]);
    const project = projects.get(key);
    if (project === undefined) {
      writeProto(join(folder, "proto"));
      writeProject(join(folder, "transforms"), options.models ?? { things: THINGS_SQL }, options.schema);
    }
    const config = loadConfig(
      {
        data: folder,
        protoDirs: [join(folder, "proto")],
        transformsDir: join(folder, "transforms"),
        ingest: { keyIndexBytes: options.keyIndexBytes ?? 64 * 1024 * 1024, ...options.ingest },
        bulk: { sources: options.sources ?? {} },
        table: {
          checkpointEvery: options.checkpointEvery ?? 7,
          compactAfterFiles: options.compactAfterFiles ?? 4,
        },
      },
      { env: {} },
    );
    const inner = await fileStore(folder);
    const context = await openContext({
      config,
      ...(project === undefined ? {} : { project }),
      store: options.store?.(inner) ?? inner,
      stream: "test",
      log: pino({ level: "silent" }),
      registry: new Registry(),
    });
    projects.set(key, context);
    const { rangeEvents = context.decoding.rangeEvents } = options;
    return { ...context, decoding: { ...context.decoding, rangeEvents } };
  }

  async lane(): Promise<Lane> {
    this.opened ??= await Lane.open(this.context, THING, () => undefined);
    return this.opened;
  }

  /** Lands a batch as ingest does: until it has, with raw read from scratch after a failure. */
  async land(batch: EventBatch): Promise<void> {
    const lane = await this.lane();
    let failed = false;
    await new Retry(new AbortController().signal).run(
      async () => {
        if (failed) await lane.reopen();
        failed = true;
        await lane.land(batch);
      },
      () => undefined,
    );
  }

  /** The model's target once its table is in step with raw. */
  async target(name = "t.things"): Promise<Target> {
    const lane = await this.lane();
    await this.settled();
    const target = lane.targets.find(({ model }) => model.name === name);
    if (target === undefined) throw new Error(`no target ${name}`);
    return target;
  }

  /** Waits until no model is behind raw. */
  async settled(): Promise<void> {
    const lane = await this.lane();
    while (lane.behind) await sleep(2);
  }

  /** Its lane has been closed by the test. */
  forget(): void {
    this.opened = undefined;
  }

  /** As after a restart of the process, with other options where given. */
  async reopen(options: Partial<LakeOptions> = {}): Promise<void> {
    await this.opened?.close();
    this.opened = undefined;
    this.context.duck.close();
    this.options = { ...this.options, ...options };
    this.context = await Lake.contextOf(this.folder, this.options);
  }

  /** The process is gone: nothing is closed, what runs goes on in the void. */
  async abandon(options: Partial<LakeOptions>): Promise<void> {
    this.opened = undefined;
    this.options = { ...this.options, ...options };
    this.context = await Lake.contextOf(this.folder, this.options);
  }

  async rows(name = "t.things"): Promise<string[]> {
    const { table, model } = await this.target(name);
    return this.context.duck.with((connection) =>
      liveRows(
        connection,
        table,
        model.columns.map((c) => c.name),
      ),
    );
  }

  /** Every raw row's "stream/partition/position", sorted. */
  async rawPositions(): Promise<string[]> {
    const raw = await DeltaTable.open(this.context.store, rawRoot(THING), this.context.duck, {
      checkpointEvery: 1000,
    });
    if (raw === undefined) return [];
    const columns = ["stream", "partition", "position"];
    const rows = await withScan(raw, raw.snapshot, { columns }, (sql) => this.query(sql));
    return rows.map((row) => row.join("/")).sort();
  }

  /** model, code, position of the dead letters, sorted. */
  async deadLetters(): Promise<string[]> {
    const { table } = this.context.deadLetters;
    const columns = ["model", "code", "position"];
    const rows = await withScan(table, await table.refresh(), { columns }, (sql) => this.query(sql));
    return rows.map(([model, code, position]) => `${model} ${code} ${position}`).sort();
  }

  query(sql: string): Promise<unknown[][]> {
    return this.context.duck.with((connection) => rowsOf(connection, sql));
  }

  async close(): Promise<void> {
    await this.opened?.close();
    this.context.duck.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Live rows as text, sorted; times as microseconds. */
export async function liveRows(
  connection: DuckDBConnection,
  table: DeltaTable,
  columns: readonly string[],
): Promise<string[]> {
  const rows = await withScan(table, table.snapshot, { columns }, (sql) => rowsOf(connection, sql));
  return rows.map((row) => JSON.stringify(row.map(plain))).sort();
}

function plain(value: unknown): unknown {
  if (typeof value === "bigint") return String(value);
  if (typeof value !== "object" || value === null) return value;
  if ("micros" in value) return String(value.micros);
  if ("items" in value) return (value.items as unknown[]).map(plain);
  return String(value);
}

/** An event of THING, in the test's own words. */
export interface TestEvent {
  readonly tenant: string;
  readonly id: string;
  /** 1 created, 2 updated, 3 deleted. */
  readonly operation: number;
  readonly version: bigint;
  readonly occurred?: { readonly seconds: number; readonly nanos: number };
  readonly thing: Thing;
  readonly payload?: Uint8Array;
}

export interface Thing {
  readonly name?: string;
  readonly amount?: number;
  readonly hidden?: boolean;
  readonly number?: string;
  readonly labels?: readonly string[];
  readonly tenant_id?: string;
  readonly entity_id?: string;
}

const ThingType = protobuf
  .parse(PROTO.replace(/.*google.*\n/g, ""), new protobuf.Root(), { keepCase: true })
  .root.lookupType(THING);

const payloadOf = (event: TestEvent): Uint8Array =>
  event.payload ?? ThingType.encode(ThingType.fromObject(event.thing)).finish();

export function encodeTestEvent(event: TestEvent): Buffer {
  return encodeEvent({
    tenantId: event.tenant,
    entityType: THING,
    entityId: event.id,
    operation: event.operation,
    version: event.version,
    ...(event.occurred === undefined ? {} : { occurredAt: event.occurred }),
    ...(event.operation === 3 ? {} : { payload: { value: payloadOf(event) } }),
  });
}

/** Stream names change by this; TRIBUTARY_SEED repeats it. */
const streamSeed = Number(process.env.TRIBUTARY_SEED ?? Math.floor(Math.random() * 2 ** 31));
console.info(`stream names: TRIBUTARY_SEED=${streamSeed}`);
let streams = 0;
/** Names that a lake's stream may have in turn; the dots are there to be mistaken for something. */
const STREAM_NAMES = ["log-7f", "topic.v1.things", "shards", "log-7f.0"];

/**
 * Hands out positions, per partition without gaps, as a stream does. Between two batches the stream may become another
 * one, whose positions begin anew, or one that there has been before: a lost log, a move to another service and back.
 */
export class TestStream {
  private readonly next = new Map<string, number>();
  private readonly random = new Random(streamSeed + streams++);
  private name: string;
  /** "stream/partition/position" of every event. */
  readonly positions: string[] = [];
  readonly events: TestEvent[] = [];

  /** Keeps the name it is given. */
  constructor(private readonly only?: string) {
    this.name = only ?? this.random.pick(STREAM_NAMES);
  }

  batch(events: readonly TestEvent[], partitionOf: (event: TestEvent) => string = () => "0"): EventBatch {
    if (this.only === undefined && this.random.chance(0.3)) this.name = this.random.pick(STREAM_NAMES);
    const { name } = this;
    const batch = new EventBatch(THING, name);
    for (const event of events) {
      const partition = partitionOf(event);
      const number = (this.next.get(`${name}/${partition}`) ?? 0) + 1;
      this.next.set(`${name}/${partition}`, number);
      const position = String(number).padStart(12, "0");
      const bytes = encodeTestEvent(event);
      batch.add(bytes, 0, bytes.length, partition, position, 1_700_000_000_000 + number);
      this.positions.push(`${name}/${partition}/${position}`);
      this.events.push(event);
    }
    return batch;
  }
}

const micros = ({ seconds, nanos }: { seconds: number; nanos: number }): bigint =>
  BigInt(seconds) * 1_000_000n + BigInt(Math.floor(nanos / 1000));

/** Where an event stands among those of its entity (design 3.1), as a list to be compared item by item. */
function rank(event: TestEvent): bigint[] {
  const deleted = event.operation === 3;
  const content = deleted
    ? xxh64(Buffer.alloc(0))
    : xxh64(Buffer.concat([Buffer.from(`type.googleapis.com/${THING}`), payloadOf(event)]));
  const occurred = event.occurred === undefined ? -(1n << 70n) : micros(event.occurred);
  return [event.version, deleted ? 1n : 0n, content, occurred, BigInt(event.operation)];
}

function beats(a: TestEvent, b: TestEvent): boolean {
  const x = rank(a);
  const y = rank(b);
  for (const [i, value] of x.entries()) if (value !== y[i]) return value > y[i]!;
  return false;
}

/** The winning event of every entity. */
export function winnersOf(events: readonly TestEvent[]): TestEvent[] {
  const best = new Map<string, TestEvent>();
  for (const event of events) {
    const key = `${event.tenant}\n${event.id}`;
    const standing = best.get(key);
    if (standing === undefined || beats(event, standing)) best.set(key, event);
  }
  return [...best.values()];
}

/** What THINGS_SQL's table must hold after a set of events; in the words of `liveRows`. */
export function expectedThings(events: readonly TestEvent[]): string[] {
  return winnersOf(events)
    .filter(({ operation, thing }) => operation !== 3 && thing.hidden !== true)
    .map(({ tenant, id, operation, version, occurred, thing }) =>
      JSON.stringify([
        tenant,
        id,
        ["", "CREATED", "UPDATED"][operation],
        String(version),
        occurred === undefined ? null : String(micros(occurred)),
        thing.name ?? "",
        String(thing.amount ?? 0),
        thing.labels ?? [],
      ]),
    )
    .sort();
}

/** A generator of numbers that repeats with its seed (mulberry32). */
export class Random {
  constructor(private state: number) {}

  next(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number from 0 to below `limit`. */
  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }

  shuffle<T>(items: readonly T[]): T[] {
    const shuffled = [...items];
    for (let i = shuffled.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [shuffled[i], shuffled[j]] = [shuffled[j]!, shuffled[i]!];
    }
    return shuffled;
  }
}

/** Seeds to run: a fixed few and a fresh one, or as many fresh ones as TEST_ROUNDS says; TRIBUTARY_SEED repeats one. */
export function seeds(fixed: number): number[] {
  const { TRIBUTARY_SEED: given, TEST_ROUNDS: rounds } = process.env;
  if (given !== undefined) return [Number(given)];
  const fresh = Array.from({ length: Number(rounds ?? 1) }, () => Math.floor(Math.random() * 2 ** 31));
  return rounds === undefined ? [...Array.from({ length: fixed }, (_, i) => i + 1), ...fresh] : fresh;
}

const TENANTS = ["acme", "acme:eu", "b.x-9"];
// Two of them are one id to whoever takes escapes for what they stand for.
const IDS = ["1", "é", "🜁-2", "a\u0000b", "a\\x41", "aA", "x".repeat(300)];
const VERSIONS = [
  1n,
  2n,
  3n,
  4n,
  (1n << 32n) - 1n,
  1n << 32n,
  (1n << 53n) + 1n,
  (1n << 53n) + 2n,
  (1n << 63n) - 1n,
];

/** Events that collide as much as they can: few entities, few versions, few contents, equal and absent times. */
export function randomEvents(random: Random, count: number): TestEvent[] {
  const events = Array.from({ length: count }, (): TestEvent => {
    const operation = 1 + random.below(3);
    return {
      tenant: random.pick(TENANTS),
      id: random.pick(IDS),
      operation,
      version: random.pick(VERSIONS),
      ...(random.chance(0.3)
        ? {}
        : {
            occurred: {
              seconds: random.pick([-1, 0, 1_700_000_000, -62_135_596_800, 253_402_300_799]),
              nanos: random.pick([0, 999, 1_000, 999_999_999]),
            },
          }),
      thing:
        operation === 3
          ? {}
          : {
              name: random.pick(["", "ann", "bob", "zoë"]),
              amount: random.pick([0, 1, -7, 2 ** 40]),
              hidden: random.chance(0.25),
              ...(random.chance(0.5) ? { labels: random.pick([["x"], ["x", "y"]]) } : {}),
            },
    };
  });
  // Duplicates, at other places.
  return random.shuffle([...events, ...events.filter(() => random.chance(0.2))]);
}
