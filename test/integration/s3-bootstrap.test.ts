import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { DeleteObjectCommand, PutObjectCommand, type S3Client } from "@aws-sdk/client-s3";
import { afterAll, beforeAll, expect, it } from "vitest";
import { Duck } from "../../services/base/duckdb.js";
import type { JobState } from "../../services/bulk/jobs/job.js";
import { JobStore } from "../../services/bulk/jobs/job-store.js";
import { startS3 } from "../servers/s3.js";
import { newBucket, onS3, readOnS3, S3Fixture, type S3Place, s3Client } from "../support/s3-lake.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

/** A bootstrap whose export and whose lake lie in buckets. */

const ROWS = 1_000;
const TYPE = "scm.v1.File";
const RAW = `raw/${TYPE}`;

let s3: Awaited<ReturnType<typeof startS3>>;
let client: S3Client;
let folder: string;
let data: string;
let place: S3Place;
let exports: string;
let env: NodeJS.ProcessEnv;
let server: Server;
let fixture: S3Fixture;
let jobs: JobStore;
beforeAll(async () => {
  s3 = await startS3();
  client = s3Client(s3.endpoint);
  folder = await temporaryFolder();
  data = join(folder, "data");
  exports = await newBucket(s3.endpoint);
  place = { endpoint: s3.endpoint, bucket: await newBucket(s3.endpoint), prefix: "lakes/bulk" };
  env = {
    ...onS3(place),
    TRIBUTARY_BULK__SOURCES__EXPORTS__URL: `s3://${exports}/years`,
    TRIBUTARY_BULK__SOURCES__EXPORTS__ENDPOINT: s3.endpoint,
    TRIBUTARY_BULK__SOURCES__EXPORTS__REGION: "us-east-1",
    TRIBUTARY_BULK__SOURCES__EXPORTS__FORCE_PATH_STYLE: "true",
    // Slow enough for something to happen between two files, of which large ones are read each by itself.
    TRIBUTARY_BULK__LIMITS__ROWS_PER_SECOND: "700",
    TRIBUTARY_BULK__SCRATCH_BYTES: String(64 * 1024 * 1024),
  };
  await writeFile(join(folder, "mapping.yaml"), "tenant: customer\nentityId: path\nversion: rev\n");
  fixture = new S3Fixture(s3.endpoint, place.bucket);
  jobs = new JobStore(await fixture.open({ prefix: place.prefix }));
  server = await Server.start("up", data, env);
}, 900_000);
afterAll(async () => {
  await server?.stop();
  fixture?.dispose();
  client?.destroy();
  await s3?.stop();
  await removeFolder(folder);
});

const put = (key: string, Body: Uint8Array) =>
  client.send(new PutObjectCommand({ Bucket: exports, Key: `years/${key}`, Body }));
const lines = (file: number, from = 0, pad = ""): Buffer =>
  Buffer.from(
    Array.from({ length: ROWS - from }, (_, i) => {
      const row = file * ROWS + from + i;
      return `${JSON.stringify({ customer: "acme", path: `f${row}`, rev: 5, change_count: row, pad })}\n`;
    }).join(""),
  );

/** Of many bytes. */
const large = (file: number, from = 0) => lines(file, from, "x".repeat(9_000));

/** Not by the command, which takes a second of CPU each time that it is asked. */
const status = async (id: string): Promise<JobState> => (await jobs.get(id)).state;
const start = async (id: string, source: string, through: "files" | "queue") => {
  const mapped = ["--mapping", join(folder, "mapping.yaml"), "--type", TYPE];
  const args = ["bootstrap", "start", "--source", source, ...mapped, "--id", id, "--data", data, "--detach"];
  args.push("--through", through);
  const started = await cli(args, env);
  expect(started.code, started.stderr).toBe(0);
};
/** Rows of raw that a job has landed. */
const landed = async (id: string) =>
  (await readOnS3(place, RAW)).filter(({ stream }) => stream === `bootstrap-${id}`).length;

it("lands from a bucket in a lake in another one, beside live events, and deltalake reads the rows", async () => {
  await mkdir(join(folder, "made"));
  const parquet = join(folder, "made", "0.parquet");
  const duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
  await duck
    .with((connection) =>
      connection.run(`COPY (SELECT 'acme' AS customer, 'f' || i AS path, 5 AS rev, i AS change_count
        FROM range(${ROWS}) t(i)) TO '${parquet}' (FORMAT parquet)`),
    )
    .finally(() => duck.close());
  await put("parquet/day=1/0.parquet", await readFile(parquet));
  for (const file of [1, 2]) await put(`lines/${file}.ndjson.gz`, gzipSync(lines(file)));
  const token = await makeToken(data, "producer");
  const events = [
    ["f0", 9, { changeCount: -1 }],
    ["f1", 4, { changeCount: -1 }],
    [`f${ROWS}`, 9, undefined],
  ] as const;
  const response = await fetch(`${server.url}/v1/events`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify(
      events.map(([entityId, version, payload]) => ({
        tenantId: "acme",
        entityType: TYPE,
        entityId,
        version,
        operation: payload === undefined ? "OPERATION_DELETED" : "OPERATION_UPDATED",
        ...(payload === undefined ? {} : { payload: { "@type": `type.googleapis.com/${TYPE}`, ...payload } }),
      })),
    ),
  });
  expect(((await response.json()) as { accepted: number }).accepted).toBe(events.length);
  await start("parquet", "exports/parquet", "files");
  await start("lines", "exports/lines", "queue");
  for (const id of ["parquet", "lines"])
    await until(`job ${id} to be done`, async () => (await status(id)).phase === "done", 300);
  await untilLanded(data, 120, env);
  expect([await landed("parquet"), await landed("lines")]).toEqual([ROWS, 2 * ROWS]);
  const rows = await readOnS3(place, "refined/scm/files");
  const right = new Map(Array.from({ length: 3 * ROWS }, (_, row) => [`f${row}`, row] as const));
  right.set("f0", -1);
  right.delete(`f${ROWS}`);
  const found = rows.map((row) => [row.entity_id as string, Number(row.change_count)] as const);
  expect(found.length).toBe(right.size);
  expect(new Map(found)).toEqual(right);
});

it.each([
  ["is put anew", "TRB-SOURCE-CHANGED", () => put("changing/5.ndjson", large(5, 1))],
  [
    "is gone",
    "TRB-SOURCE-CHANGED",
    () => client.send(new DeleteObjectCommand({ Bucket: exports, Key: "years/changing/5.ndjson" })),
  ],
])(
  "a file that %s while others are read pauses the job; whole files have landed",
  async (how, code, change) => {
    const id = how.replaceAll(" ", "-");
    for (let file = 0; file < 6; file++) await put(`changing/${file}.ndjson`, large(file));
    await start(id, "exports/changing", "files");
    await until("rows to land", async () => (await status(id)).rowsLanded > 0, 300);
    await change();
    await until("the job to be paused", async () => (await status(id)).phase === "paused", 300);
    expect((await status(id)).code).toBe(code);
    expect(await landed(id)).toBe(5 * ROWS);
  },
);
