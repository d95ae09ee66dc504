import { readdirSync, readlinkSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { Duck, rowsOf } from "../../services/base/duckdb.js";
import { layout } from "../../services/base/paths.js";
import { FileStore } from "../../services/storage/file-store.js";
import { DeltaTable } from "../../services/table/delta-table.js";
import { MANY_ROWS } from "../../services/table/large-files.js";
import { withScan } from "../../services/table/scan.js";
import { family } from "../support/ingest-round.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

/** A job whose files are large, beside live events, as processes of a real server. */

const ROWS = MANY_ROWS + 10_000;
const TYPE = "scm.v1.File";
const TENANT = "acme";

const duck = await Duck.create({ memoryBytes: 512 * 1024 * 1024 });
const folders: string[] = [];
let server: Server | undefined;
afterAll(async () => {
  await server?.kill();
  duck.close();
  for (const folder of folders) await removeFolder(folder);
});

/** What is gone while one looks, as processes and their files are, is nothing. */
function orNone<T>(look: () => T[]): T[] {
  try {
    return look();
  } catch {
    return [];
  }
}

/** Runs of keys that a job's process has made, and another one has open. */
const runsTakenOver = (): string[] =>
  orNone(() => family(server!.process.pid!))
    .flatMap((pid) => orNone(() => readdirSync(`/proc/${pid}/fd`).map((fd) => `/proc/${pid}/fd/${fd}`)))
    .flatMap((open) => orNone(() => [readlinkSync(open)]))
    .filter((path) => /\/bulk[^/]*\/keys-.* \(deleted\)$/.test(path));

test("ingest takes over what a job's process has made of the keys of its file, and no entity stands twice", async () => {
  const [data, exports] = [await temporaryFolder(), await temporaryFolder()];
  folders.push(data, exports);
  await mkdir(join(exports, "files"));
  await duck.with((connection) =>
    connection.run(`COPY (SELECT '${TENANT}' AS customer, 'f' || i AS path, 5 AS rev, i AS change_count
      FROM range(${ROWS}) t(i)) TO '${join(exports, "files", "0.parquet")}' (FORMAT parquet)`),
  );
  const mapping = join(exports, "mapping.yaml");
  await writeFile(mapping, "tenant: customer\nentityId: path\nversion: rev\n");
  const config = join(data, "tributary.yaml");
  await writeFile(config, `bulk:\n  sources: { exports: ${JSON.stringify(exports)} }\n`);
  const token = await makeToken(data, "producer");
  server = await Server.start("up", data, {}, 0, config);
  const publish = async (id: number, version: number) => {
    const path = `f${id}`;
    const event = {
      tenantId: TENANT,
      entityType: TYPE,
      entityId: path,
      version: String(version),
      operation: "OPERATION_UPDATED",
      payload: { "@type": `type.googleapis.com/${TYPE}`, path, changeCount: -version },
    };
    const response = await fetch(`${server!.url}/v1/events`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify([event]),
    });
    expect(response.status).toBe(200);
  };
  let live = true;
  let published = 0;
  const publishing = (async () => {
    // Each of another entity; every other one loses against the export's.
    for (; live; published++) {
      await publish((published * 7) % ROWS, published % 2 === 0 ? 9 : 3);
      await sleep(30);
    }
  })();
  let taken = 0;
  const looking = (async () => {
    for (; live; await sleep(30)) taken += runsTakenOver().length;
  })();
  const job = await cli([
    "bootstrap",
    "start",
    "--id",
    "one",
    "--source",
    "exports/files",
    // Few rows go through the import queue else.
    "--through",
    "files",
    "--mapping",
    mapping,
    "--type",
    TYPE,
    "--data",
    data,
    "--config",
    config,
  ]);
  expect(job, job.stderr).toMatchObject({ code: 0 });
  await until("ingest to have met a run of keys", async () => taken > 0, 30);
  live = false;
  await Promise.all([publishing, looking]);
  await untilLanded(data, 120);
  expect(await server.stop()).toBe(0);
  const store = await FileStore.open({ folder: layout(data).lake, staging: join(data, "reading") });
  const table = (await DeltaTable.open(store, "refined/scm/files", duck, { checkpointEvery: 1000 }))!;
  const [counts] = await withScan(table, table.snapshot, {}, (relation) =>
    duck.with((connection) =>
      rowsOf(
        connection,
        `SELECT count(*)::INTEGER, count(DISTINCT entity_id)::INTEGER, count_if(change_count = -9)::INTEGER,
           count_if(change_count = -3)::INTEGER FROM (${relation})`,
      ),
    ),
  );
  await table.settled();
  expect(counts).toEqual([ROWS, ROWS, Math.ceil(published / 2), 0]);
}, 300_000);
