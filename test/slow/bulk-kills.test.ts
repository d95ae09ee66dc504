import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { runBootstrap } from "../../services/bulk/bootstrap/bootstrap-job.js";
import { streamOf } from "../../services/bulk/jobs/job-tracks.js";
import { runReplay } from "../../services/bulk/replay/replay-job.js";
import { confirmDeletes } from "../../services/bulk/verify/reconcile.js";
import { planOf } from "../../services/bulk/verify/reconcile-plan.js";
import { verificationOf } from "../../services/bulk/verify/verification.js";
import { withScan } from "../../services/table/scan.js";
import { eachOperation, FaultyStore } from "../support/faulty-store.js";
import { bootstrapOf, hostOf, replayOf } from "../support/jobs.js";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  THING,
  winnersOf,
} from "../support/lake.js";

/** A bootstrap that reconciles and verifies: gone at any step of it, with many entities beside live events, and beside a replay of its table. */

vi.mock("../../services/sources/source-process.js", () => import("../support/readers-here.js"));

const thing = (id: number, version = 1n, operation = 1): TestEvent => ({
  tenant: "acme",
  id: `t-${id}`,
  operation,
  version,
  thing: operation === 3 ? {} : { name: `n${id}`, amount: id + 1 },
});

const ROWS_A_FILE = 5;

async function withLake(use: (lake: Lake, put: (rows: readonly TestEvent[]) => void) => Promise<void>) {
  const folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
  mkdirSync(join(folder, "job"));
  const lake = await Lake.create({ sources: { exports: folder } });
  const put = (rows: readonly TestEvent[]) => {
    const lines = rows.map(({ tenant, id, version, thing: { name, amount } }) =>
      JSON.stringify({ customer: tenant, id, rev: String(version), name, amount }),
    );
    // Chunks go from one of its files into the next.
    for (let at = 0; at < lines.length; at += ROWS_A_FILE) {
      const name = `${String(at).padStart(6, "0")}.ndjson`;
      writeFileSync(join(folder, "job", name), lines.slice(at, at + ROWS_A_FILE).join("\n"));
    }
  };
  try {
    await use(lake, put);
  } finally {
    await lake.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

test.each(["what it deletes is found", "that was confirmed"])(
  "a job that is killed at any step before or after %s is gone on with: nothing is half-done, nothing is done twice",
  async (when) => {
    const isConfirmed = when === "that was confirmed";
    const old = Array.from({ length: 20 }, (_, i) => thing(i));
    const newer = [thing(0, 2n), thing(9, 2n, 3)];
    const gone = [1, 2, 3].map((id) => thing(id, 1n, 3));
    const job = bootstrapOf("job", { reconcile: { watermark: { version: 1 } } });
    const waits = { code: "TRB-RECONCILE-CONFIRM" };
    let most = 0;
    const round = async (at: number): Promise<boolean> => {
      let crashed = false;
      await withLake(async (lake, put) => {
        const lane = await lake.lane();
        await lane.land(new TestStream("live").batch(old));
        await lake.settled();
        put(old.slice(4));
        const confirm = async () => {
          await expect(runBootstrap(lake.context, job, hostOf())).rejects.toMatchObject(waits);
          const { version: asOf } = (await planOf(lake.context.store, "job"))!;
          await confirmDeletes(lake.context.store, "job", { count: 4, asOf }, "ops");
        };
        if (isConfirmed) {
          await confirm();
          await lane.land(new TestStream("later").batch(newer));
          await lake.settled();
        }
        let faulty: FaultyStore | undefined;
        const dying = await lake.twin({
          store: (inner) => {
            faulty = new FaultyStore(inner);
            return faulty.store;
          },
        });
        faulty!.arm(at, "crash");
        const ended = runBootstrap(dying.context, job, hostOf()).then(
          () => expect(isConfirmed).toBe(true),
          (error: unknown) => expect(error).toMatchObject(waits),
        );
        crashed = await Promise.race([ended.then(() => false), faulty!.gone.then(() => true)]);
        most = Math.max(most, at);
        const about = `${when}: crash at operation ${at} (${faulty!.victim})`;
        const places = async () =>
          (await lake.rawPositions()).filter((one) => one.startsWith(`${streamOf("job")}/deletes/`)).length;
        // All of them, or none, and none that was not confirmed.
        expect(isConfirmed ? [0, 4] : [0], about).toContain(await places());
        if (!isConfirmed) {
          await confirm();
          await lane.land(new TestStream("later").batch(newer));
          await lake.settled();
        }
        expect(await runBootstrap(lake.context, job, hostOf()), about).toBe(true);
        expect(await places(), about).toBe(4);
        await lane.look();
        await lake.settled();
        await (await lake.target()).table.refresh();
        const right = expectedThings([...old, thing(0, 1n, 3), ...gone, ...newer]);
        expect(await lake.rows(), about).toEqual(right);
        expect(await verificationOf(lake.context.store, "job", THING), about).toMatchObject({
          equal: true,
          source: { rows: 16 },
          raw: { rows: 16 },
        });
        const landed = (await lake.rawPositions()).filter((one) => one.startsWith(streamOf("job")));
        expect(landed.length, about).toBe(16 + 4);
        if (!crashed) dying.context.duck.close();
      });
      return crashed;
    };
    await eachOperation(round, 10);
    expect(most).toBeGreaterThan(20);
  },
);

test("of 200,000 entities the 1 % that vanished are deleted, but for those that live events have written since", async () => {
  const [ENTITIES, EVERY] = [200_000, 100];
  await withLake(async (lake) => {
    const lane = await lake.lane();
    const live = new TestStream("live");
    const all = Array.from({ length: ENTITIES }, (_, id) => thing(id));
    for (let at = 0; at < ENTITIES; at += 20_000) await lane.land(live.batch(all.slice(at, at + 20_000)));
    await lake.settled();
    const folder = (lake.context.config.bulk.sources as Record<string, { url: string }>).exports!.url;
    await lake.query(
      `COPY (SELECT 'acme' AS customer, 't-' || i AS id, 1 AS rev, 'n' || i AS name, i + 1 AS amount
       FROM range(${ENTITIES}) t(i) WHERE i % ${EVERY} <> 0) TO '${join(folder, "job", "a.parquet")}' (FORMAT parquet)`,
    );
    const vanished = all.filter((_, id) => id % EVERY === 0);
    const third = Math.floor(vanished.length / 3);
    const again = (some: readonly TestEvent[]) =>
      some.map((one) => ({ ...one, version: 2n, operation: 2, thing: { name: "again", amount: 1 } }));
    const [before, between] = [again(vanished.slice(0, third)), again(vanished.slice(third, 2 * third))];
    // Others are written meanwhile, too, and some deleted.
    const others = all
      .filter((_, id) => id % 1_000 === 7)
      .map((one) => ({ ...one, version: 2n, operation: 3 }));
    const job = bootstrapOf("job", { reconcile: { watermark: { version: 1 } } });
    const [first] = await Promise.allSettled([
      runBootstrap(lake.context, job, hostOf()),
      (async () => {
        for (let at = 0; at < third; at += 50) await lane.land(live.batch(before.slice(at, at + 50)));
      })(),
    ]);
    expect(first).toMatchObject({ status: "rejected", reason: { code: "TRB-RECONCILE-CONFIRM" } });
    const { deletes, version: asOf } = (await planOf(lake.context.store, "job"))!;
    expect(deletes).toBeGreaterThanOrEqual(vanished.length - third);
    await confirmDeletes(lake.context.store, "job", { count: deletes, asOf }, "ops");
    await Promise.all([
      (async () => {
        for (let at = 0; at < third; at += 200) await lane.land(live.batch(between.slice(at, at + 200)));
        await lane.land(live.batch(others));
      })(),
      runBootstrap(lake.context, job, hostOf()).then((done) => expect(done).toBe(true)),
    ]);
    await lane.look();
    await lake.settled();
    const { table } = await lake.target();
    await table.refresh();
    const ids = async (where: string) =>
      (
        await withScan(table, table.snapshot, {}, (rows) =>
          lake.query(`SELECT entity_id FROM (${rows}) WHERE ${where} ORDER BY 1`),
        )
      ).map(([id]) => id as string);
    const gone = [...vanished.slice(2 * third), ...others].map(({ id }) => id).sort();
    const missing = await withScan(table, table.snapshot, {}, (rows) =>
      lake.query(
        `SELECT 't-' || i FROM range(${ENTITIES}) t(i) ANTI JOIN (${rows}) r ON r.entity_id = 't-' || i`,
      ),
    );
    expect(missing.map(([id]) => id as string).sort()).toEqual(gone);
    expect((await ids("name = 'again'")).sort()).toEqual([...before, ...between].map(({ id }) => id).sort());
    expect((await ids("true")).length).toBe(ENTITIES - gone.length);
  });
});

test("a replay that swaps a table, beside a bootstrap into it and live events, loses nothing of either", async () => {
  for (const seed of seeds(0)) {
    console.info(`replay beside a bootstrap: TRIBUTARY_SEED=${seed}`);
    const random = new Random(seed);
    await withLake(async (lake, put) => {
      const events = randomEvents(random, 120).map((one) => ({
        ...one,
        id: `${one.id}${random.below(9)}`,
        // Small ones: a job whose versions are on another scale is refused.
        version: 1n + (one.version % 7n),
      }));
      const plain = ({ tenant, id, version, thing: { name, amount } }: TestEvent): TestEvent => {
        const own = { ...(name ? { name } : {}), ...(amount ? { amount } : {}) };
        return { tenant, id, operation: 1, version, thing: own };
      };
      const rows = winnersOf(events.slice(0, 60).filter(({ operation }) => operation !== 3))
        .filter(({ id }) => !id.includes("\u0000"))
        .map(plain);
      put(rows);
      const lane = await lake.lane();
      const stream = new TestStream("live");
      await lane.land(stream.batch(events.slice(0, 40)));
      await lake.settled();
      const other = await lake.twin();
      const swap = replayOf({ id: "swap", action: "swap" });
      const [replayed, landed] = await Promise.all([
        runReplay(other.context, swap, hostOf()),
        runBootstrap(lake.context, bootstrapOf("job"), hostOf()),
        (async () => {
          for (let at = 40; at < events.length; at += 8)
            await lane.land(stream.batch(events.slice(at, at + 8)));
        })(),
      ]).finally(() => other.context.duck.close());
      expect([replayed, landed]).toEqual([true, true]);
      await lane.look();
      await lake.settled();
      await (await lake.target()).table.refresh();
      expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings([...events, ...rows]));
    });
  }
});
