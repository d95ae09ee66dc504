import { afterEach, beforeEach, expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { encodeTestEvent, type Lake } from "../../test/support/lake.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { pipelineLake, startPipeline, until } from "../../test/support/pipeline-run.js";
import { TributaryError } from "../base/errors.js";
import { RetentionWatch } from "./retention.js";

const HOUR_MS = 3_600_000;

let lake: Lake;
/** The store takes nothing: neither commits nor what is parked. */
let away: boolean;
beforeEach(async () => {
  away = false;
  const refuse = async () => {
    if (away) throw new TributaryError("TRB-STORE-FAILED", "a test's fault");
  };
  lake = await pipelineLake({
    store: (inner) =>
      overriding(inner, {
        put: (key, bytes) => refuse().then(() => inner.put(key, bytes)),
        putIfAbsent: (key, bytes) => refuse().then(() => inner.putIfAbsent(key, bytes)),
        adopt: (files) => refuse().then(() => inner.adopt(files)),
      }),
  });
});
afterEach(() => lake.close());

const gauge = async (name: "retention" | "retentionLeft") =>
  (await lake.context.metrics[name].get()).values.map(({ labels, value }) => [labels.stream, value]);

test("what has neither landed nor been parked is told with the time that the stream keeps it for yet", async () => {
  const reader = new MemoryReader("s1");
  reader.retention = 24 * HOUR_MS;
  const { pipeline, stop } = startPipeline(lake, reader);
  await until("the gauge", async () => (await gauge("retentionLeft")).length === 1);
  expect(await gauge("retention")).toEqual([["s1", 86_400]]);
  expect(await gauge("retentionLeft")).toEqual([["s1", 86_400]]);

  away = true;
  const event = encodeTestEvent({
    tenant: "a",
    id: "1",
    operation: 1,
    version: 1n,
    thing: { name: "x" },
  });
  reader.append(0, event, Date.now() - 20 * HOUR_MS);
  // A younger one beside does not hide it.
  reader.append(1, event);
  await until("less time", async () => Number((await gauge("retentionLeft"))[0]![1]) < 4 * 3_600 + 1);
  expect(Number((await gauge("retentionLeft"))[0]![1])).toBeGreaterThan(4 * 3_600 - 60);

  away = false;
  pipeline.hurry();
  await until("all to be safe", async () => (await gauge("retentionLeft"))[0]![1] === 86_400);
  await stop();
  expect(await gauge("retentionLeft")).toEqual([]);
});

test("a stream that keeps events until they are read has no such time; one that cannot be asked keeps what was known", async () => {
  const reader = new MemoryReader("s1");
  const watch = new RetentionWatch(lake.context, "s1", reader, () => undefined);
  await watch.look();
  expect(await gauge("retentionLeft")).toEqual([]);
  watch.close();

  let asked = 0;
  const failing = {
    retentionMs: async () => {
      if (++asked > 1) throw new TributaryError("TRB-BUS-STREAM-DOWN");
      return HOUR_MS;
    },
  };
  const other = new RetentionWatch(lake.context, "s2", failing, () => Date.now() - HOUR_MS / 2, 0);
  await other.look();
  await other.look();
  expect(asked).toBe(2);
  const [left] = await gauge("retentionLeft");
  expect(left![0]).toBe("s2");
  expect(Number(left![1])).toBeCloseTo(1_800, -1);
  other.close();
});
