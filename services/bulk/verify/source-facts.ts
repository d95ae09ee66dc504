import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { literal } from "../../base/duckdb.js";
import { inGroups } from "../../base/in-groups.js";
import type { IngestContext } from "../../ingest/context.js";
import { lend } from "../../sources/inspect.js";
import { START } from "../../sources/reader.js";
import { SourceProcess } from "../../sources/source-process.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import { CHUNK_WORKER } from "../chunks/chunk-file.js";
import type { Chunk, LeaveOut, NextChunk, OpenFile } from "../chunks/chunk-protocol.js";
import type { Aside } from "../chunks/payloads-aside.js";
import type { JobHost } from "../jobs/job-run.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import { addDigests, type EventDigest, eventDigests } from "./digests.js";

/** What is read and hashed at once, at most; whichever is reached first. */
const CHUNK = { rows: 120_000, bytes: 64 * 1024 * 1024 };
const LOOKS_AT_ONCE = 16;

const factsShape = z.strictObject({
  rejected: z.int().min(0),
  tenants: z.array(
    z.tuple([z.string(), z.strictObject({ rows: z.int(), keys: z.string(), events: z.string() })]),
  ),
});

/** What files were found to hold: by job, run, type and file. */
export const DIGESTS = "jobs/digests/";

/** Whose a key below DIGESTS is. */
export function runOfDigest(key: string): { readonly job: string; readonly run: string } {
  const [job = "", run = ""] = key.slice(DIGESTS.length).split("/");
  return { job, run };
}

/** What a source holds. */
export interface SourceFacts {
  /** By tenant. */
  readonly digests: ReadonlyMap<string, EventDigest>;
  /** Rows that are no events: of whom they are is not known. */
  readonly rejected: number;
}

type Context = Pick<IngestContext, "store" | "duck" | "registry" | "config" | "decoding">;

/**
 * Reads a source to its end, as the job that lands it does, for what its rows say. What a file holds is kept under the
 * name of the `run`: whoever goes on with it does not read the file again. Undefined when the signal stopped it.
 * Errors: those of sources.
 */
export async function sourceFacts(
  context: Context,
  order: BootstrapOrder,
  host: Pick<JobHost, "signal" | "pace">,
  run: string,
): Promise<SourceFacts | undefined> {
  const { store } = context;
  const digests = new Map<string, EventDigest>();
  let rejected = 0;
  for (const file of order.share?.files ?? order.manifest.files.keys()) {
    const key = `${DIGESTS}${order.job}/${run}/${order.entityType}/${file}.json`;
    const kept = await store.get(key);
    const facts =
      kept === undefined
        ? await factsOf(context, order, file, host)
        : factsShape.parse(JSON.parse(kept.toString("utf8")));
    if (facts === undefined) return undefined;
    if (kept === undefined) await store.put(key, Buffer.from(JSON.stringify(facts)));
    rejected += facts.rejected;
    addDigests(digests, new Map(facts.tenants));
  }
  return { digests, rejected };
}

function factsOf(
  context: Context,
  order: BootstrapOrder,
  file: number,
  host: Pick<JobHost, "signal" | "pace">,
): Promise<z.infer<typeof factsShape> | undefined> {
  const { place, manifest, limits, csv } = order;
  return lend(place, manifest, file, limits, csv, async (unit) => {
    const { readerMemoryBytes: memoryBytes, readerIdleMs: idleMs } = limits;
    const maker = new SourceProcess({ memoryBytes, idleMs }, CHUNK_WORKER);
    const out = join(context.store.staging, `verify-${randomUUID()}.parquet`);
    const aside = `${out}.payloads`;
    const { entityType, tenant, mapping, share, job } = order;
    const open: OpenFile = {
      type: "open",
      unit,
      file,
      from: START,
      out,
      models: [],
      mapping,
      leaves: share?.leaves,
      payloads: { sizes: context.config.bus, aside },
      descriptors: context.registry.bytes(),
      entityType,
      tenant,
      stream: streamOf(job),
      partition: LANE,
    };
    try {
      await maker.call(open);
      return await chunks(context, maker, out, host);
    } finally {
      maker.end();
      await maker.ended;
      for (const path of [out, aside]) await rm(path, { force: true });
    }
  });
}

async function chunks(
  { duck, decoding }: Context,
  maker: SourceProcess,
  out: string,
  host: Pick<JobHost, "signal" | "pace">,
): Promise<z.infer<typeof factsShape> | undefined> {
  const digests = new Map<string, EventDigest>();
  let rejected = 0;
  for (;;) {
    if (host.signal.aborted) return undefined;
    const rejects = { count: 0 };
    const made = (request: NextChunk | LeaveOut) =>
      maker.call(request, (reply) => {
        if (reply.type === "rejects") rejects.count += reply.rejects.length;
      }) as Promise<Chunk>;
    let chunk = await made({ type: "next", ...CHUNK });
    if (chunk.aside !== undefined) {
      const rows = await missingOf(decoding, chunk.aside);
      if (rows.length > 0) chunk = await made({ type: "leave", rows });
    }
    rejected += rejects.count;
    if (chunk.file.rows > 0) {
      const relation = `read_parquet(${literal(out)}, hive_partitioning=false)`;
      addDigests(digests, await duck.with((connection) => eventDigests(connection, relation)));
      await rm(out);
    }
    await host.pace({ rows: chunk.file.rows, bytes: chunk.bytes });
    if (chunk.end) return { rejected, tenants: [...digests] };
  }
}

/** Rows whose payloads are not there: no events, as when they landed. */
async function missingOf(
  { offloaded }: Pick<IngestContext["decoding"], "offloaded">,
  { elsewhere }: Aside,
): Promise<number[]> {
  const missing: number[] = [];
  await inGroups(elsewhere, LOOKS_AT_ONCE, async ({ row, uri, sizeBytes, sha256 }) => {
    if (!(await offloaded.holds({ uri, sizeBytes, sha256: Buffer.from(sha256) }))) missing.push(row);
  });
  return missing;
}
