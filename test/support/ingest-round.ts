import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { loadConfig } from "../../services/base/config.js";
import { rowsOf } from "../../services/base/duckdb.js";
import { rawRoot } from "../../services/ingest/raw-table.js";
import { refinedRoot } from "../../services/ingest/refined-table.js";
import { readingDuck, withStore } from "../../services/main/compose/runtime.js";
import { streamKind } from "../../services/main/compose/streams.js";
import { loadModels } from "../../services/models/project.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { DeltaTable } from "../../services/table/delta-table.js";
import { progressOf } from "../../services/table/progress.js";
import { withScan } from "../../services/table/scan.js";
import type { Random } from "./lake.js";
import { Oracle } from "./oracle.js";
import { actualRow, digestOf, type TableName } from "./oracle-tables.js";
import { makeToken, Server, until } from "./stack.js";

/** Whole processes on a remote stream and a remote store: a bus, workers without a shared disk, and what befalls them. */

/** A server and the processes below it: its ingest runs in one. */
export function family(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  return [pid, ...(children === "" ? [] : children.split(" ").flatMap((child) => family(Number(child))))];
}

function signal(server: Server, name: "SIGSTOP" | "SIGCONT"): void {
  for (const pid of family(server.process.pid!)) process.kill(pid, name);
}

/** A table that was found right: what any other engine must make of its rows, too. */
export interface LandedTable {
  readonly root: string;
  readonly digest: string;
  readonly digestOf: (rows: readonly Readonly<Record<string, unknown>>[]) => string;
}

export interface RoundOptions {
  readonly folder: string;
  readonly env: NodeJS.ProcessEnv;
  readonly lines: readonly string[];
  readonly random: Random;
  /** A worker that stands still for so long has lost what it had. */
  readonly leaseMs: number;
  /** Rows of a table by its place in the lake, as another engine reads them. */
  readonly readTable: (root: string) => Promise<readonly Readonly<Record<string, unknown>>[]>;
  /** Is told of each table once it is what it should be. */
  readonly landed?: (table: LandedTable) => void;
  /** What befalls the stream itself in mid-stream. */
  readonly shake: () => Promise<void>;
  readonly note: string;
}

/**
 * Publishes the lines while of three workers one is killed, one is frozen for longer than its lease, and another joins;
 * in the end raw has each of the stream's records once, and refined is what the oracle says.
 */
export async function ingestRound(options: RoundOptions): Promise<void> {
  const { folder, env, lines, random, leaseMs, shake, note } = options;
  const workers: Server[] = [];
  let joined = 0;
  const join_ = async () => {
    const data = join(folder, `worker-${joined++}`);
    workers.push(await Server.start("ingest", data, env));
  };
  const bus = await Server.start("bus", join(folder, "bus"), env);
  try {
    await Promise.all([join_(), join_(), join_()]);
    const token = await makeToken(join(folder, "bus"), "producer");
    const batch = Math.ceil(lines.length / (10 + random.below(50)));
    const late = Math.floor(lines.length * 0.9);
    const pauseMs = (SPREAD_MS * batch) / late;
    const published = publish(bus, token, lines.slice(0, late), batch, pauseMs);
    published.catch(() => undefined);
    const [killed, frozen] = random.shuffle(workers.slice());
    await sleep(1_000 + random.below(4_000));
    signal(frozen!, "SIGSTOP");
    await sleep(random.below(2_000));
    await killed!.kill();
    await sleep(random.below(2_000));
    await shake();
    await join_();
    await sleep(leaseMs * 1.5);
    signal(frozen!, "SIGCONT");
    await published;
    await publish(bus, token, lines.slice(late), batch, 0);
    const oracle = new Oracle();
    for (const line of lines) oracle.applyLine(line);
    const types = [...new Set(lines.map((line) => (JSON.parse(line) as { entityType: string }).entityType))];
    await checkLanded({ ...options, oracle, types });
  } finally {
    for (const worker of workers) if (worker.running) signal(worker, "SIGCONT");
    const codes = await Promise.all(workers.map((worker) => worker.stop()));
    await bus.stop();
    expect(codes.filter((code) => code === 0).length, `${note}: graceful ends`).toBeGreaterThanOrEqual(2);
  }
}

/** About as long as the troubles take, so that they come in mid-stream; the last events come after them. */
const SPREAD_MS = 12_000;

/** In order; what is refused, or not answered, is sent again with the rest of its batch: then it is two records. */
async function publish(
  bus: Server,
  token: string,
  lines: readonly string[],
  batch: number,
  pauseMs: number,
): Promise<void> {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/x-ndjson" };
  for (let at = 0; at < lines.length; at += batch) {
    const body = lines.slice(at, at + batch).join("\n");
    await until(
      "a batch to be accepted",
      async () => {
        const answer = await fetch(`${bus.url}/v1/events`, { method: "POST", headers, body }).catch(
          () => undefined,
        );
        if (answer?.status === 200) {
          const { rejected } = (await answer.json()) as { rejected?: number };
          if (rejected === 0) return true;
        }
        await answer?.body?.cancel().catch(() => undefined);
        await sleep(200);
        return false;
      },
      120,
    );
    await sleep(pauseMs);
  }
}

/**
 * Waits until all that stands in the streams of these types has landed, then looks: each record is in raw once, and
 * refined is what the oracle says. Resolves to the places of the records, "partition/position".
 */
export async function checkLanded(
  options: Pick<RoundOptions, "folder" | "env" | "readTable" | "landed" | "note"> & {
    readonly types: readonly string[];
    readonly oracle: Oracle;
  },
): Promise<ReadonlySet<string>> {
  const { folder, env, types, oracle, readTable, landed, note } = options;
  const config = loadConfig({ data: join(folder, "checker") }, { env });
  const kind = await streamKind(config);
  const models = loadModels(config.transformsDir);
  const duck = await readingDuck();
  try {
    const due = new Set<string>();
    const places = new Set<string>();
    for (const name of new Set(types.map((type) => kind.nameOf(type)))) {
      const reader = await kind.reader(name);
      const follower = await reader.follow("oldest");
      const head = await reader.head();
      const reached = new Map<string, string>();
      while ([...head].some(([partition, position]) => (reached.get(partition) ?? "") < position)) {
        const batch = await follower.read({ maxEvents: 10_000, maxBytes: 1e8, waitMs: 1_000 });
        for (let i = 0; i < (batch?.count ?? 0); i++) {
          const partition = batch!.names[batch!.partitions[i]!]!;
          reached.set(partition, batch!.positions[i]!);
          due.add(`${reader.name}/${partition}/${batch!.positions[i]}`);
          places.add(`${partition}/${batch!.positions[i]}`);
        }
      }
      await follower.close();
      await reader.close();
    }
    await withStore(config, async (store) => {
      const open = (root: string) => tableAt(store, root, duck);
      const raw = await Promise.all(types.map((type) => open(rawRoot(type))));
      const found = async () => {
        const rows = await Promise.all(
          raw.map((table) =>
            withScan(table, table.snapshot, { columns: ["stream", "partition", "position"] }, (sql) =>
              duck.with((connection) => rowsOf(connection, sql)),
            ),
          ),
        );
        return rows.map((some) => some.map((row) => row.join("/")).sort());
      };
      await until(
        `${note}: everything to land`,
        async () => {
          for (const table of raw) await table.refresh();
          return (
            raw.reduce((rows, { snapshot }) => rows + snapshot.files.reduce((n, f) => n + f.rows, 0), 0) >=
            due.size
          );
        },
        180,
      );
      const placesOf = await found();
      const positions = placesOf.flat();
      expect(new Set(positions).size, `${note}: positions in raw once`).toBe(positions.length);
      expect(positions.sort(), `${note}: raw`).toEqual([...due].sort());
      for (const [at, type] of types.entries())
        landed?.({
          root: rawRoot(type),
          digest: textDigest(placesOf[at]!),
          digestOf: (rows) => textDigest(rows.map((row) => `${row.stream}/${row.partition}/${row.position}`)),
        });
      for (const model of models.filter(({ entityType }) => types.includes(entityType))) {
        const table = await open(refinedRoot(model));
        const source = raw[types.indexOf(model.entityType)]!;
        await until(
          `${note}: ${model.name} to be in step`,
          async () => {
            const own = progressOf(await table.refresh());
            return [...progressOf(source.snapshot)].every(([track, position]) => own.get(track) === position);
          },
          180,
        );
        const name = model.name as TableName;
        const refined: LandedTable = {
          root: refinedRoot(model),
          digest: oracle.digest(name),
          digestOf: (rows) => digestOf(rows.map((row) => actualRow(name, row))),
        };
        const rows = await readTable(refined.root);
        expect(refined.digestOf(rows), `${note}: ${name}`).toBe(refined.digest);
        landed?.(refined);
      }
    });
    return places;
  } finally {
    duck.close();
  }
}

/** Of texts in any order. */
const textDigest = (texts: readonly string[]): string =>
  createHash("sha256").update(texts.toSorted().join("\n")).digest("hex");

async function tableAt(store: ObjectStore, root: string, duck: Awaited<ReturnType<typeof readingDuck>>) {
  let table: DeltaTable | undefined;
  await until(`${root} to be there`, async () => {
    table = await DeltaTable.open(store, root, duck, { checkpointEvery: 1_000 });
    return table !== undefined;
  });
  return table!;
}
