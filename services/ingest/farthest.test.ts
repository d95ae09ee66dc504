import { expect, test } from "vitest";
import { encodeTestEvent, Lake, Random, randomEvents, TestStream } from "../../test/support/lake.js";
import { farthest } from "./farthest.js";
import { ParkedLog } from "./parked-log.js";

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
    expect(await farthest({ ...lake.context, stream: "log" })).toEqual(ends);
    expect(await farthest({ ...lake.context, stream: "third" })).toBeUndefined();
    // What is parked has left the stream, too.
    const parked = new ParkedLog(lake.context.store, "t.v1.Thing", () => true);
    const [event] = randomEvents(new Random(3), 1);
    await parked.append("third", {
      count: 1,
      partitions: ["7"],
      positions: ["0000000000000012"],
      receivedAt: [5],
      event: () => encodeTestEvent(event!),
    });
    const ofThird = await farthest({ ...lake.context, stream: "third" });
    expect(ofThird).toEqual(new Map([["7", "0000000000000012"]]));
  } finally {
    await lake.close();
  }
});
