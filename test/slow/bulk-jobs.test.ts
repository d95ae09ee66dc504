import { readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { Duck, rowsOf } from "../../services/base/duckdb.js";
import { layout } from "../../services/base/paths.js";
import { rawRoot } from "../../services/ingest/raw-table.js";
import { FileStore } from "../../services/storage/file-store.js";
import { DeltaTable } from "../../services/table/delta-table.js";
import { withScan } from "../../services/table/scan.js";
import { Random, seeds } from "../support/lake.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

/** A bootstrap job of a real server, killed wherever it stands, beside live events of the same entities. */

/** TEST_ROUNDS=10 for the whole of it. */
const KILLS = Number(process.env.TEST_ROUNDS ?? 3);
const FILES = KILLS + 1;
const ROWS = 6_000;
/** A job that runs as fast as it can is done before it is killed so often. */
const ROWS_PER_SECOND = 3_000;
const TYPE = "scm.v1.File";
const TENANT = "acme";
const RUNS = new Set(["landing", "refining", "verifying", "done"]);

const duck = await Duck.create({ memoryBytes: 512 * 1024 * 1024 });
const folders: string[] = [];
let server: Server | undefined;
afterAll(async () => {
  await server?.kill();
  duck.close();
  for (const folder of folders) await removeFolder(folder);
});

interface Row {
  readonly version: number;
  readonly count: number;
  readonly isDeleted: boolean;
}

/** Each entity's winner. */
class Oracle {
  readonly rows = new Map<string, Row>();

  put(id: string, row: Row): void {
    if (row.version > (this.rows.get(id)?.version ?? -1)) this.rows.set(id, row);
  }

  get live(): string[] {
    return [...this.rows]
      .filter(([, { isDeleted }]) => !isDeleted)
      .map(([id, { count }]) => `${id} ${count}`)
      .sort();
  }
}

/** Publishes until the server has taken it, whatever becomes of the server meanwhile. */
async function publish(token: string, events: readonly (Row & { readonly id: string })[]): Promise<void> {
  const body = events.map(({ id, version, count, isDeleted }) => ({
    tenantId: TENANT,
    entityType: TYPE,
    entityId: id,
    version: String(version),
    operation: isDeleted ? "OPERATION_DELETED" : "OPERATION_UPDATED",
    ...(isDeleted
      ? {}
      : { payload: { "@type": `type.googleapis.com/${TYPE}`, path: id, changeCount: count } }),
  }));
  for (;;) {
    try {
      const response = await fetch(`${server!.url}/v1/events`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      const answer = (await response.json()) as { accepted?: number };
      if (response.ok) {
        expect(answer.accepted).toBe(events.length);
        return;
      }
    } catch {
      // It was killed: what it may have taken is sent again.
    }
    await sleep(50);
  }
}

test("a job whose server is killed again and again, paused and stopped, lands each row once, and the state is the oracle's", async () => {
  const [seed] = seeds(0);
  console.info(`bulk jobs: TRIBUTARY_SEED=${seed}`);
  const random = new Random(seed!);
  const [data, exports] = [await temporaryFolder(), await temporaryFolder()];
  folders.push(data, exports);
  const oracle = new Oracle();
  await mkdir(join(exports, "files"));
  await duck.with(async (connection) => {
    for (let file = 0; file < FILES; file++)
      await connection.run(`COPY (SELECT '${TENANT}' AS customer, 'f' || i AS path, 5 AS rev, i AS change_count
        FROM range(${file * ROWS}, ${(file + 1) * ROWS}) t(i)) TO '${join(exports, "files", `${file}.parquet`)}' (FORMAT parquet)`);
  });
  for (let i = 0; i < FILES * ROWS; i++) oracle.put(`f${i}`, { version: 5, count: i, isDeleted: false });
  const mapping = join(exports, "mapping.yaml");
  await writeFile(mapping, "tenant: customer\nentityId: path\nversion: rev\n");
  const config = join(data, "tributary.yaml");
  await writeFile(
    config,
    `bulk:\n  sources: { exports: ${JSON.stringify(exports)} }\n  limits: { rowsPerSecond: ${ROWS_PER_SECOND} }\n`,
  );
  const token = await makeToken(data, "producer");
  const start = async () => {
    server = await Server.start("up", data, {}, 0, config);
  };
  await start();

  // Older and newer than the export, of its entities and others, before it begins, while it runs, and behind it.
  let live = true;
  const said = new Set<string>();
  const publishing = (async () => {
    while (live) {
      const events = Array.from({ length: 50 }, () => ({
        id: `f${random.below(FILES * ROWS + 500)}`,
        version: random.pick([3, 7, 8]),
        count: -1 - random.below(1000),
        isDeleted: random.chance(0.3),
      }));
      // Of one entity's events with equal versions the greatest hash wins: no matter here.
      const fresh = events.filter(({ id, version }) => {
        const key = `${id} ${version}`;
        return !said.has(key) && said.add(key);
      });
      await publish(token, fresh);
      for (const { id, ...row } of fresh) oracle.put(id, row);
      await sleep(100);
    }
  })();
  const job = (id: string, command: string, ...more: string[]) =>
    cli([
      "bootstrap",
      command,
      ...(command === "start" ? ["--id", id] : [id]),
      "--data",
      data,
      "--config",
      config,
      ...more,
    ]);
  const begin = (id: string) =>
    job(id, "start", "--source", "exports/files", "--mapping", mapping, "--type", TYPE, "--detach");
  const phase = (id: string): string => {
    try {
      const text = readFileSync(join(layout(data).lake, "jobs", "states", `${id}.json`), "utf8");
      return (JSON.parse(text) as { phase: string }).phase;
    } catch {
      return "waiting";
    }
  };

  const begun = await begin("one");
  expect(begun, begun.stderr).toMatchObject({ code: 0 });
  let kills = 0;
  while (kills < KILLS && phase("one") !== "done") {
    await until("the job to run", async () => RUNS.has(phase("one")), 120);
    await sleep(random.below(2_500));
    if (kills === 1) {
      await job("one", "pause");
      await until("the job to pause", async () => ["paused", "done"].includes(phase("one")), 60);
    }
    if (kills === 2) expect(await server!.stop()).toBe(0);
    else await server!.kill();
    kills++;
    await start();
    if (kills === 2) await job("one", "resume");
  }
  expect(kills).toBeGreaterThan(2);
  await until("the job to end", async () => phase("one") === "done", 300);
  // Run twice it changes nothing.
  await begin("two");
  await until("the second job to end", async () => phase("two") === "done", 300);
  live = false;
  await publishing;
  await untilLanded(data, 120);
  expect(await server!.stop()).toBe(0);

  const store = await FileStore.open({ folder: layout(data).lake, staging: join(data, "reading") });
  const read = async (root: string, sql: (relation: string) => string) => {
    const table = (await DeltaTable.open(store, root, duck, { checkpointEvery: 1000 }))!;
    const rows = await withScan(table, table.snapshot, {}, (relation) =>
      duck.with((connection) => rowsOf(connection, sql(`(${relation})`))),
    );
    await table.settled();
    return rows;
  };
  const landed = await read(
    rawRoot(TYPE),
    (
      raw,
    ) => `SELECT stream, count(*)::INTEGER, count(DISTINCT position)::INTEGER, count(DISTINCT entity_id)::INTEGER
      FROM ${raw} WHERE starts_with(stream, 'bootstrap-') GROUP BY stream ORDER BY stream`,
  );
  const all = FILES * ROWS;
  expect(landed).toEqual([
    ["bootstrap-one", all, all, all],
    ["bootstrap-two", all, all, all],
  ]);
  const refined = await read(
    "refined/scm/files",
    (files) => `SELECT entity_id || ' ' || change_count FROM ${files}`,
  );
  expect(refined.map(([row]) => row as string).sort()).toEqual(oracle.live);
}, 900_000);
