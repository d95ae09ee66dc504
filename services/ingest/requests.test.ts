import { expect, test } from "vitest";
import { CountingStore } from "../../test/support/counting-store.js";
import { Lake, Random, randomEvents, TestStream } from "../../test/support/lake.js";
import type { DeltaTable } from "../table/delta-table.js";

const KINDS = ["get", "range", "put", "put if absent", "adopt", "list"];

test("metrics count commits of raw and of refined tables", async () => {
  const lake = await Lake.create();
  const layer = async (name: "raw" | "refined") => {
    const { values } = await lake.context.metrics.commits.get();
    return values.find(({ labels }) => labels.layer === name)?.value ?? 0;
  };
  try {
    const stream = new TestStream();
    const random = new Random(12);
    const lane = await lake.lane();
    const { table } = await lake.target();
    await lake.settled();
    const [raw, refined] = [lane.raw.snapshot.version, table.snapshot.version];
    const before = [await layer("raw"), await layer("refined")];
    for (let batch = 0; batch < 3; batch++) {
      await lane.land(stream.batch(randomEvents(random, 10)));
      await lake.settled();
    }
    expect([await layer("raw"), await layer("refined")]).toEqual([
      before[0]! + lane.raw.snapshot.version - raw,
      before[1]! + table.snapshot.version - refined,
    ]);
    expect(await layer("refined")).toBeGreaterThanOrEqual(3);
  } finally {
    await lake.close();
  }
});

/** Each request to a remote store takes its time and costs money. */
test("a raw commit takes three requests to the store at most, a refined one five, log checkpoints included", async () => {
  let counting: CountingStore | undefined;
  const lake = await Lake.create({
    checkpointEvery: 10,
    compactAfterFiles: 1_000,
    store: (inner) => {
      counting = new CountingStore(inner);
      return counting.store;
    },
  });
  try {
    const stream = new TestStream();
    const random = new Random(11);
    const lane = await lake.lane();
    await lane.land(stream.batch(randomEvents(random, 50)));
    const tables: readonly [DeltaTable, number][] = [
      [lane.raw, 3],
      [(await lake.target()).table, 5],
    ];
    const before = tables.map(([table]) => table.snapshot.version);
    counting!.requests.length = 0;
    for (let batch = 0; batch < 30; batch++) {
      await lane.land(stream.batch(randomEvents(random, 50)));
      await lake.settled();
    }
    for (const [table] of tables) await table.settled();
    const requests = counting!.requests.filter(({ key }) => !key.endsWith("status.json"));
    for (const [i, [table, most]] of tables.entries()) {
      const commits = table.snapshot.version - before[i]!;
      expect(commits).toBeGreaterThanOrEqual(25);
      const own = requests.filter(({ key }) => key.startsWith(`${table.root}/`));
      const kinds = KINDS.map(
        (kind) => `${kind} ${own.filter(({ operation }) => operation === kind).length}`,
      );
      console.info(`${table.root}: ${commits} commits, ${kinds.join(", ")}`);
      expect(own.length / commits, kinds.join(", ")).toBeLessThanOrEqual(most);
      // Who writes alone knows what stands there.
      expect(own.filter(({ operation }) => operation === "get")).toEqual([]);
    }
    const elsewhere = requests.filter(({ key }) => !tables.some(([{ root }]) => key.startsWith(`${root}/`)));
    expect(elsewhere).toEqual([]);
  } finally {
    await lake.close();
  }
});
