import { expect, test, vi } from "vitest";
import { beforeCommit } from "../../../test/support/before-commit.js";
import { injure } from "../../../test/support/injure.js";
import { hostOf, replayOf } from "../../../test/support/jobs.js";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
} from "../../../test/support/lake.js";
import { RawWriter } from "../../ingest/raw-writer.js";
import { Target } from "../../ingest/target.js";
import { append } from "../../table/append.js";
import { positionsOf } from "../../table/progress.js";
import { runReplay } from "./replay-job.js";

for (const action of ["repair", "swap"] as const) {
  test(`a ${action} amid a model's catch-up takes nothing away of what that has put in so far`, async () => {
    for (const seed of seeds(0)) {
      const random = new Random(seed);
      const events = randomEvents(random, 60);
      const lake = await Lake.create();
      const other = await lake.twin();
      try {
        const stream = new TestStream("test");
        await lake.land(stream.batch(events.slice(0, 10)));
        await lake.settled();
        const { raw } = await lake.lane();
        const late = stream.batch(events.slice(10));
        await append(raw, "test", positionsOf(raw.snapshot, "test"), async (path) => ({
          file: await new RawWriter(await lake.context.duck.connect()).write(late, path),
          to: late.reached(),
        }));
        const context = { ...lake.context, decoding: { ...lake.context.decoding, sliceBytes: 400 } };
        const model = context.models.find(({ name }) => name === "t.things")!;
        const target = await Target.open(context, model);
        const { writer } = target;
        const upsert = writer.upsert.bind(writer);
        let replayed = false;
        writer.upsert = async (one) => {
          // The last one of the range, which moves the table's positions.
          if (one.to.size > 0 && !replayed) {
            replayed = true;
            const tenant = action === "repair" ? { tenant: "acme" } : {};
            expect(await runReplay(other.context, replayOf({ action, ...tenant }), hostOf())).toBe(true);
            // As lanes and compactions do beside.
            await target.table.refresh();
          }
          return upsert(one);
        };
        await target.catchUp(raw, new AbortController().signal);
        await target.close();
        expect(replayed, `seed ${seed}`).toBe(true);
        await (await lake.lane()).look();
        expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings(events));
      } finally {
        other.context.duck.close();
        await lake.close();
      }
    }
  });
}

test("a repair whose files have grown old beside live commits makes them anew; one that always comes late is told", async () => {
  const events = randomEvents(new Random(11), 60);
  const lake = await Lake.create();
  const stream = new TestStream("test");
  const late = randomEvents(new Random(12), 200);
  let always = false;
  let tries = 0;
  const other = await lake.twin({
    store: (inner) =>
      beforeCommit(inner, "REPLACE TENANT", async (time) => {
        tries++;
        if (time > 1 && !always) return;
        await lake.land(stream.batch(late.splice(0, 1)));
        await lake.settled();
        // By then nothing that was staged may be committed.
        if (time === 1) vi.setSystemTime(Date.now() + 13 * 3600 * 1000);
      }),
  });
  vi.useFakeTimers({ toFake: ["Date"] });
  try {
    await lake.land(stream.batch(events));
    await lake.settled();
    const order = replayOf({ action: "repair", tenant: "acme" });
    expect(await runReplay(other.context, order, hostOf())).toBe(true);
    expect(tries).toBe(2);
    expect(await lake.rows()).toEqual(expectedThings(stream.events));
    always = true;
    await expect(
      runReplay(other.context, replayOf({ id: "r2", action: "repair", tenant: "acme" }), hostOf()),
    ).rejects.toMatchObject({ code: "TRB-REPLAY-CROWDED", retryable: true });
    expect(await lake.rows()).toEqual(expectedThings(stream.events));
  } finally {
    vi.useRealTimers();
    other.context.duck.close();
    await lake.close();
  }
}, 60_000);

for (const keyIndexBytes of [64 * 1024 * 1024, 0]) {
  test(`a row that a repair has put back beside its tombstone is replaced by the next event (index of ${keyIndexBytes} bytes)`, async () => {
    const events = Array.from(
      { length: 12 },
      (_, i): TestEvent => ({
        tenant: "acme",
        id: `e${i}`,
        operation: 1,
        version: BigInt(i + 1),
        thing: { name: "ann" },
      }),
    );
    const lake = await Lake.create({ keyIndexBytes });
    try {
      const stream = new TestStream("test");
      await lake.land(stream.batch(events));
      await lake.settled();
      const hiding = (sql: string) => sql.replace("where not payload.hidden", "where false");
      await injure(lake.context, "t.things", new TestStream("nowhere").batch(events), hiding);
      const order = replayOf({ from: 0, until: 100, tenant: "acme", action: "repair" });
      expect(await runReplay(lake.context, order, hostOf())).toBe(true);
      await lake.reopen();
      expect(await lake.rows()).toEqual(expectedThings(events));
      const newer = events.map((event) => ({ ...event, operation: 2, version: event.version + 100n }));
      await lake.land(stream.batch(newer));
      expect(await lake.rows()).toEqual(expectedThings(newer));
    } finally {
      await lake.close();
    }
  });
}
