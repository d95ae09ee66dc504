import { isAbsolute } from "node:path";
import { z } from "zod";
import { count, flag, MiB, several, whole } from "./config-values.js";
import { isWindow, WINDOW_WORDS } from "./time-windows.js";

const S3_URL = /^s3:\/\/[a-z0-9][a-z0-9._-]{1,62}(\/[\w.=-]+)*$/i;
const isPlace = (text: string): boolean =>
  (isAbsolute(text) || S3_URL.test(text)) && !text.split("/").some((part) => part === "." || part === "..");
const place = z
  .string()
  .refine(isPlace, "expected an absolute path of a folder, or s3://bucket/prefix, without . and ..");

const root = z.strictObject({
  /** An absolute path of a folder, or s3://bucket/prefix. */
  url: place,
  /** Of the bucket; as AWS tools find it when not set, as are credentials. */
  region: z.string().min(1).optional(),
  /** A server that is not AWS's. */
  endpoint: z.url({ protocol: /^https?$/ }).optional(),
  /** The bucket's name in the path of URLs rather than in the host's name. */
  forcePathStyle: flag.default(false),
  /** Without a byte for so long, a request is tried again. */
  timeoutMs: count(10_000, 100),
});

export type SourceRootConfig = z.infer<typeof root>;

/** From more than 0 to 1; as variables have it, or a number. */
const share = z.preprocess(
  (value) => (typeof value === "string" && /^(0?\.\d+|1)$/.test(value) ? Number(value) : value),
  z.number().gt(0).max(1),
);

/** What bulk jobs may take. */
export const limits = z.strictObject({
  rowsPerSecond: whole(1).optional(),
  bytesPerSecond: whole(1).optional(),
  /** Of all of the machine's cores. */
  cpuShare: share.optional(),
});

/** Loading in bulk. */
export const bulk = z
  .strictObject({
    /**
     * Where exports may lie, by name: a folder's path or s3://bucket/prefix, alone or as `url` beside how it is
     * reached. Nothing else is read.
     */
    sources: z
      .record(
        z.string().regex(/^[a-z][a-z0-9-]{0,62}$/, "expected a name of a-z 0-9 -"),
        z.preprocess((value) => (typeof value === "string" ? { url: value } : value), root),
      )
      .default({}),
    /** Local disk for copies of files that lie in a bucket. */
    scratchBytes: count(20 * 1024 * MiB, 64 * MiB),
    /** A longer record of a text or protobuf file is rejected. */
    maxRecordBytes: count(16 * MiB, 1024),
    /** What the engine of a process that reads a source may hold. */
    readerMemoryBytes: count(768 * MiB, 64 * MiB),
    /** A reader that gets nowhere for so long is killed; it may wait longer for a core. */
    readerIdleMs: count(60_000, 100),
    /** Jobs that run beside each other; the others wait for their turn. */
    jobsAtOnce: count(1),
    /** Together, all jobs of the lake take no more: rows and bytes of sources a second, share of the machine's cores. */
    limits: limits.prefault({}),
    /** Jobs go on at these times alone, UTC: "22:00-06:00", "Mon-Fri 20:00-06:00", "Sat,Sun 00:00-24:00"; always where there are none. */
    windows: z.preprocess(several, z.array(z.string().refine(isWindow, WINDOW_WORDS))).default([]),
    /** Between two chunks a job waits while live events wait for longer: half of what the 99th in a hundred may. */
    yieldAtMs: count(250),
    /** What the engine of a job's process may hold; a job's index of keys may hold a quarter as much beside. */
    jobMemoryBytes: count(1024 * MiB, 128 * MiB),
  })
  .prefault({});
