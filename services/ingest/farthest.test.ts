import { expect, test } from "vitest";
import { Lake, Random, randomEvents, TestStream } from "../../test/support/lake.js";
import { farthest } from "./farthest.js";

test("the farthest of a partition is what the table has that has come the farthest along it", async () => {
  const lake = await Lake.create();
  try {
    const stream = new TestStream("log");
    await lake.land(stream.batch(randomEvents(new Random(1), 40)));
    const landed = await lake.rawPositions();
    const other = new TestStream("other");
    await lake.land(other.batch(randomEvents(new Random(2), 10)));
    const ends = new Map<string, string>();
    for (const each of landed) {
      const [partition, position] = each.split("/").slice(-2) as [string, string];
      if (position > (ends.get(partition) ?? "")) ends.set(partition, position);
    }
    const context = { ...lake.context, stream: "log" };
    expect(await farthest(context, [...ends.keys(), "99"])).toEqual(ends);
    expect(await farthest(context, ["99"])).toEqual(new Map());
    expect((await farthest({ ...context, stream: "third" }, [...ends.keys()])).size).toBe(0);
  } finally {
    await lake.close();
  }
});
