import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse as parseYaml } from "yaml";
import { z } from "zod";
import { bulk } from "./config-bulk.js";
import { count, flag, MiB, several, whole } from "./config-values.js";
import { TributaryError } from "./errors.js";
import { packageRoot } from "./paths.js";

const topicName = z.string().regex(/^[A-Za-z0-9._-]{1,200}$/, "expected 1 to 200 of A-Z a-z 0-9 . _ -");

const kafka = z.strictObject({
  /** host:port of brokers to begin with. */
  brokers: z.preprocess(several, z.array(z.string().min(3)).min(1).default(["127.0.0.1:9092"])),
  clientId: z.string().min(1).default("tributary"),
  /** A product domain's events have a topic of their own: this and the domain's name. */
  topicPrefix: topicName.default("tributary."),
  /** Topics by domain, where they are called otherwise; several domains may share one. */
  topics: z.record(z.string(), topicName).default({}),
  /** One topic for all domains. */
  topic: topicName.optional(),
  /** How a topic is made where there is none (with `stream.partitions`). */
  replicationFactor: count(3),
  minInsyncReplicas: count(2),
  retentionMs: count(7 * 24 * 3600 * 1000),
  maxMessageBytes: count(4 * MiB),
  /** For development: topics that a lost disk can take events from are not refused. */
  allowFewReplicas: flag.default(false),
  compression: z.enum(["none", "gzip", "snappy", "lz4", "zstd"]).default("none"),
  /** Events that brokers have not acknowledged yet; more are refused, to be sent again. */
  maxInFlightBytes: count(64 * MiB),
  /** A worker that is not heard of for so long is replaced. */
  sessionMs: count(10_000, 1_000),
  tls: z
    .strictObject({
      enabled: flag.default(true),
      /** PEM files: authorities to trust in place of the system's, and our own certificate with its key. */
      caFile: z.string().optional(),
      certFile: z.string().optional(),
      keyFile: z.string().optional(),
      serverName: z.string().optional(),
    })
    .optional(),
  sasl: z
    .strictObject({
      mechanism: z.enum(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
      username: z.string().min(1),
      password: z.string().min(1).optional(),
      /** In place of the password: a file that holds it. */
      passwordFile: z.string().min(1).optional(),
    })
    .refine(
      ({ password, passwordFile }) => (password === undefined) !== (passwordFile === undefined),
      "expected a password or a passwordFile",
    )
    .optional(),
});

const streamName = z.string().regex(/^[A-Za-z0-9._-]{1,128}$/, "expected 1 to 128 of A-Z a-z 0-9 . _ -");

const kinesis = z.strictObject({
  /** As AWS tools find it when not set; so are credentials. */
  region: z.string().min(1).optional(),
  /** A server that is not AWS's. */
  endpoint: z.url().optional(),
  /** A product domain's events have a stream of their own: this and the domain's name. Streams are made by operators. */
  streamPrefix: streamName.default("tributary-"),
  /** Streams by domain, where they are called otherwise; several domains may share one. */
  streams: z.record(z.string(), streamName).default({}),
  /** One stream for all domains. */
  stream: streamName.optional(),
  /** The DynamoDB table by which workers share shards; made where there is none. */
  leaseTable: z
    .string()
    .regex(/^[A-Za-z0-9._-]{3,255}$/, "expected a table name")
    .default("tributary-leases"),
  leaseEndpoint: z.url().optional(),
  /** A worker that is not heard of for so long is replaced. */
  leaseMs: count(10_000, 1_000),
  /** A throughput of its own for ingest in each shard (enhanced fan-out), which AWS bills by itself. */
  fanOut: flag.default(false),
});

/** A JWKS is fetched over TLS; only from this machine may it come without. */
const isKeyUrl = (text: string): boolean => {
  if (!URL.canParse(text)) return false;
  const { protocol, hostname } = new URL(text);
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(hostname);
  return protocol === "https:" || (protocol === "http:" && local);
};
const SIGNATURES = [
  "RS256",
  "RS384",
  "RS512",
  "PS256",
  "PS384",
  "PS512",
  "ES256",
  "ES384",
  "ES512",
  "EdDSA",
] as const;
const keySet = z.strictObject({
  url: z.string().refine(isKeyUrl, "expected an https URL (http on this machine only)"),
  /** The `iss` that its tokens must have; any, or none, when not set. */
  issuer: z.string().min(1).optional(),
  /** Tokens that are signed in another way are refused. */
  algorithms: z.array(z.enum(SIGNATURES)).min(1).default(["RS256", "ES256", "EdDSA"]),
});

/** One shape for tributary.yaml and TRIBUTARY_* variables. Sizes are bytes, times are milliseconds. */
export const configSchema = z.strictObject({
  data: z.string().min(1).default("./data"),
  /** A variable gives several, separated by commas. */
  protoDirs: z.preprocess(
    several,
    z.array(z.string().min(1)).default(() => [join(packageRoot, "proto")]),
  ),
  /** Files with FileDescriptorSets (buf build -o, protoc --include_imports), beside protoDirs or in their place. */
  protoDescriptors: z.preprocess(
    several,
    z.array(z.string().min(1)).default(() => []),
  ),
  transformsDir: z.string().default(() => join(packageRoot, "transforms")),
  /** How often descriptors and models are looked at for changes; 0 = read again on SIGHUP alone. */
  watchMs: count(1_000, 0),
  http: z
    .strictObject({
      host: z.string().default("127.0.0.1"),
      port: whole(0, 65_535).default(8080),
      /** A body must come at this rate; one that falls behind it for `bodyGraceMs` is answered with 408. A head has twice that time. */
      minBodyBytesPerSecond: count(16 * 1024),
      bodyGraceMs: count(5_000),
      /** An answer must be read at the same rate; a connection whose reader falls behind it for so long is cut. */
      answerGraceMs: count(30_000),
      /** Further ones are closed at once: they must not use up the files that the log needs. */
      maxConnections: count(10_000),
    })
    .prefault({}),
  auth: z
    .strictObject({
      /** A JWK with an HS256 secret; made in the data folder when absent. */
      keyFile: z.string().optional(),
      audience: z.string().default("tributary"),
      /** Issuers whose keys are fetched; tokens of each, and of the key above, are good at the same time. */
      jwks: z.preprocess(
        (value) => (typeof value === "string" ? value.split(",").map((url) => ({ url })) : value),
        z.array(keySet).default(() => []),
      ),
    })
    .prefault({}),
  bus: z
    .strictObject({
      maxBodyBytes: count(64 * MiB),
      maxEventsPerRequest: count(50_000),
      /** A payload of more bytes goes to the object store, and its event refers to it. */
      maxPayloadBytes: count(1_000_000),
      /** The most bytes of a payload, packed and unpacked. */
      maxOffloadBytes: whole(0, 64_000_000).default(64_000_000),
      /** What one request may ask for in all: its body, inflated, and its payloads, unpacked. */
      maxDecodedBytes: count(256 * MiB),
      /** Requests being read or waiting for their sync, by what has arrived; more is answered with 429. */
      maxInFlightBytes: count(256 * MiB),
      /** Accepted bytes that ingest has not landed yet; more is answered with 429, a producer that floods sooner than others. */
      maxLagBytes: count(512 * MiB),
    })
    .prefault({}),
  offload: z
    .strictObject({
      /** Payloads in the object store that no event refers to are kept so long; events rely on one of half that age. */
      keepMs: count(14 * 24 * 3600_000),
      /** How often one worker of ingest looks for these. */
      collectEveryMs: count(6 * 3600_000),
      /** Producers put payloads into a bucket themselves, by presigned URLs; false where they cannot reach it. */
      presign: flag.default(true),
    })
    .prefault({}),
  stream: z
    .strictObject({
      /** A log on this machine's disk, Kafka's topics, or streams of Amazon Kinesis. */
      kind: z.enum(["embedded", "kafka", "kinesis"]).default("embedded"),
      kafka: kafka.prefault({}),
      kinesis: kinesis.prefault({}),
      /** Of the embedded log, and of Kafka's topics that are made. */
      partitions: count(4),
      /** Of the embedded log. */
      segmentBytes: count(64 * MiB),
    })
    .prefault({}),
  ingest: z
    .strictObject({
      /** Product domains whose streams are landed; all when empty. A variable gives several, separated by commas. */
      domains: z.preprocess(
        several,
        z.array(z.string().min(1)).default(() => []),
      ),
      flushEvents: count(50_000),
      flushBytes: count(32 * MiB),
      /** How long an idle pipeline waits for company after the first event of a batch. */
      lingerMs: count(15, 0),
      /** Commits over all tables a second, averaged; a burst of as many is free. */
      commitsPerSecond: count(40),
      /** Accepted events of one entity type that are parked in the lake while its raw table cannot land; beyond it the bus refuses the type. */
      parkedBytes: count(1024 * MiB),
      keyIndexBytes: count(1024 * MiB, 0),
      duckdbMemoryBytes: count(2048 * MiB),
      /** A model's statement that takes longer is interrupted and its events are tried apart; one alone is a dead letter. */
      modelTimeoutMs: count(20_000),
    })
    .prefault({}),
  storage: z
    .strictObject({
      /** "files": the lake is a folder of `data`. */
      kind: z.enum(["files", "s3"]).default("files"),
      /** Credentials are found as all AWS tools find them: variables, profiles, the machine's role. */
      s3: z
        .strictObject({
          bucket: z.string().min(1).optional(),
          /** Where the lake lies in the bucket. */
          prefix: z
            .string()
            .regex(/^$|^[\w.=-]+(\/[\w.=-]+)*$/, "expected names with slashes between them")
            .default(""),
          /** Of the bucket; as AWS tools find it when not set. */
          region: z.string().min(1).optional(),
          /** A server that is not AWS's. */
          endpoint: z.url({ protocol: /^https?$/ }).optional(),
          /** The bucket's name in the path of URLs rather than in the host's name. */
          forcePathStyle: flag.default(false),
          /** Encrypts what is put (SSE-KMS); when not set, the bucket's own setting does. */
          kmsKeyId: z.string().min(1).optional(),
          /** Local disk for copies of objects, for each process. */
          cacheBytes: count(10 * 1024 * MiB, 64 * MiB),
          /** Without a byte for so long, a request is tried again. */
          timeoutMs: count(10_000, 100),
        })
        .prefault({}),
    })
    .refine(({ kind, s3 }) => kind !== "s3" || s3.bucket !== undefined, {
      path: ["s3", "bucket"],
      message: "expected the name of a bucket, as storage.kind is s3",
    })
    .prefault({}),
  table: z
    .strictObject({
      checkpointEvery: count(50),
      /** Compaction merges a size tier once it holds this many files. */
      compactAfterFiles: count(16, 2),
    })
    .prefault({}),
  query: z
    .strictObject({
      timeoutMs: count(30_000),
      memoryBytes: count(512 * MiB),
      maxRows: count(100_000),
      /** Requests being read and answers that have not left yet; more is answered with 429. */
      maxHeldBytes: count(256 * MiB),
      maxSqlBytes: count(65_536),
      /** Queries that run at once, each in a process of its own. */
      workers: count(3),
      /** Of these, what one tenant may have; all but one when not set. */
      maxRunningPerTenant: whole(1).optional(),
      maxWaiting: count(64),
      /** Of these, what one tenant may have; a quarter when not set. */
      maxWaitingPerTenant: whole(1).optional(),
    })
    .prefault({}),
  bulk,
  tracing: z
    .strictObject({
      /** Where traces go by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; nowhere when not set. */
      endpoint: z.url({ protocol: /^https?$/ }).optional(),
    })
    .prefault({}),
  log: z
    .strictObject({ level: z.enum(["trace", "debug", "info", "warn", "error", "silent"]).default("info") })
    .prefault({}),
});

export type Config = z.infer<typeof configSchema>;

/**
 * Reads `file` (default: tributary.yaml where it exists), lays TRIBUTARY_* variables and then `overrides` over it.
 * A variable names its path with two underscores between levels: TRIBUTARY_INGEST__FLUSH_EVENTS.
 * Errors: TRB-CONFIG, naming path, expectation and what was found.
 */
export function loadConfig(
  overrides: Record<string, unknown> = {},
  options: { file?: string; env?: NodeJS.ProcessEnv } = {},
): Config {
  const file = options.file ?? "tributary.yaml";
  let base: unknown = {};
  if (existsSync(file)) {
    try {
      base = parseYaml(readFileSync(file, "utf8")) ?? {};
    } catch (cause) {
      throw new TributaryError("TRB-CONFIG", `${file}: not readable as YAML`, { cause });
    }
  } else if (options.file !== undefined) {
    throw new TributaryError("TRB-CONFIG", `${options.file}: no such file`);
  }
  const merged = merge(merge(base, fromEnvironment(options.env ?? process.env)), overrides);
  const parsed = configSchema.safeParse(merged);
  if (parsed.success) return parsed.data;
  const lines = parsed.error.issues.map((issue) => {
    const path = issue.path.join(".") || "(top)";
    if (issue.code === "unrecognized_keys") return `${path}: no such setting: ${issue.keys.join(", ")}`;
    const found = issue.path.reduce<unknown>(
      (value, key) => (value as Record<PropertyKey, unknown>)?.[key],
      merged,
    );
    return `${path}: ${issue.message}, found ${shown(path, found)}`;
  });
  throw new TributaryError("TRB-CONFIG", lines.join("; "));
}

/** Errors are shown and logged: a password is not, whatever else is wrong about it. */
const shown = (path: string, found: unknown): string =>
  SECRET.test(path)
    ? "(not shown)"
    : (JSON.stringify(found, (key, value: unknown) => (SECRET.test(key) ? "(not shown)" : value)) ??
      "nothing");
const SECRET = /(password|sasl)$/;

/** TRIBUTARY_LOG__LEVEL=debug → { log: { level: "debug" } }. TRIBUTARY_TOKEN and TRIBUTARY_URL belong to the CLI. Errors: TRB-CONFIG. */
function fromEnvironment(env: NodeJS.ProcessEnv): Record<string, unknown> {
  const result = Object.create(null) as Record<string, unknown>;
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith("TRIBUTARY_") || value === undefined) continue;
    if (name === "TRIBUTARY_TOKEN" || name === "TRIBUTARY_URL") continue;
    const path = name
      .slice("TRIBUTARY_".length)
      .split("__")
      .map((part) => part.toLowerCase().replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()));
    let node: Record<string, unknown> | undefined = result;
    for (const key of path.slice(0, -1)) {
      // Without a prototype, so that a variable of that name makes a setting and changes nothing else.
      node[key] ??= Object.create(null);
      node = node[key] as Record<string, unknown>;
      if (typeof node !== "object") throw twoKinds(name);
    }
    const last = path[path.length - 1]!;
    if (node[last] !== undefined) throw twoKinds(name);
    node[last] = value;
  }
  return result;
}

const twoKinds = (name: string) =>
  new TributaryError(
    "TRB-CONFIG",
    `${name}: expected one setting, or settings below it, found variables for both`,
  );

function merge(base: unknown, over: unknown): unknown {
  if (!isPlain(base) || !isPlain(over)) return over === undefined ? base : over;
  const result: Record<string, unknown> = { ...base };
  for (const [key, value] of Object.entries(over)) result[key] = merge(result[key], value);
  return result;
}

const isPlain = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
