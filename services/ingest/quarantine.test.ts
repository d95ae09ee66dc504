import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  TestStream,
  THING,
  THINGS_SQL,
} from "../../test/support/lake.js";
import { readIngestStatus } from "../status/ingest-status.js";

const MODELS = { things: THINGS_SQL, others: THINGS_SQL };
const REFINED = "lake/refined/t/others/_delta_log";
const events = randomEvents(new Random(1), 60);

let lake: Lake;
let stream: TestStream;

beforeEach(async () => {
  lake = await Lake.create({ models: MODELS, checkpointEvery: 1000 });
  stream = new TestStream();
  await lake.land(stream.batch(events.slice(0, 20)));
  await lake.settled();
});
afterEach(() => lake.close());

/** Overwrites a table's newest commit; returns what puts it back. */
function damage(folder: string, version: number): () => void {
  const path = join(lake.folder, folder, `${String(version).padStart(20, "0")}.json`);
  const whole = readFileSync(path);
  writeFileSync(path, "{not json");
  return () => writeFileSync(path, whole);
}

async function until(check: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await check())) await sleep(5);
}

describe("a model whose table is damaged", () => {
  test("is quarantined alone: raw and the other model go on, and it comes back by itself", async () => {
    const version = (await lake.lane()).targets[0]!.table.snapshot.version;
    await lake.reopen();
    const mend = damage(REFINED, version);
    const { health } = lake.context;
    health.start();
    const lane = await lake.lane();
    await until(() => health.get("model", "t.others")?.state === "quarantined");
    await lake.land(stream.batch(events.slice(20, 40)));
    expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
    const healthy = lane.seat("t.things")!;
    await until(() => !healthy.behind);
    expect(lane.targets.map(({ model }) => model.name)).toEqual(["t.things"]);

    await health.settled();
    const told = await readIngestStatus(lake.context.store);
    expect(told?.tables).toMatchObject([
      {
        kind: "model",
        name: "t.others",
        entityType: THING,
        state: "quarantined",
        code: "TRB-TABLE-CORRUPT",
        remedy: "tributary table repair t.others",
        held: false,
      },
    ]);
    expect(Date.parse(told!.tables[0]!.nextTryAt!)).toBeGreaterThan(Date.parse(told!.tables[0]!.since));

    mend();
    lane.seat("t.others")!.hurry();
    await lake.settled();
    await lake.land(stream.batch(events.slice(40)));
    expect(await lake.rows("t.others")).toEqual(expectedThings(events));
    expect(await lake.rows("t.things")).toEqual(expectedThings(events));
    await health.settled();
    expect((await readIngestStatus(lake.context.store))?.tables).toEqual([]);
  });
});

describe("a batch that fails", () => {
  test("lets nothing pass it before raw was read from scratch: a gap would follow", async () => {
    const lane = await lake.lane();
    const version = lane.raw.snapshot.version;
    const [first, second] = [stream.batch(events.slice(20, 40)), stream.batch(events.slice(40))];
    // Another program writes the next version, and it is torn.
    const path = join(
      lake.folder,
      `lake/raw/${THING}/_delta_log/${String(version + 1).padStart(20, "0")}.json`,
    );
    writeFileSync(path, "{not json");
    await expect(lane.land(first)).rejects.toMatchObject({ code: "TRB-TABLE-CORRUPT" });
    rmSync(path);
    await expect(lane.land(second)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    await lane.reopen();
    await lane.land(first);
    await lane.land(second);
    expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
    expect(await lake.rows()).toEqual(expectedThings(events));
  });
});

describe("the dead-letter table", () => {
  test("may be damaged without ingest noticing, until there is a letter", async () => {
    await lake.reopen();
    const mend = damage("lake/dead_letters/_delta_log", 0);
    await lake.reopen();
    await lake.land(stream.batch(events.slice(20)));
    expect(await lake.rows()).toEqual(expectedThings(events));
    const letter = {
      model: "",
      code: "TRB-EVENT-MALFORMED",
      reason: "the event cannot be read",
      stream: "test",
      partition: "0",
      position: "9999",
      receivedAt: 0,
      event: Buffer.from("?"),
    };
    await expect(lake.context.deadLetters.add([letter])).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    mend();
    await lake.context.deadLetters.add([letter]);
    expect(await lake.deadLetters()).toHaveLength(1);
  });
});
