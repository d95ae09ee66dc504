import { expect, test } from "vitest";
import { encodeTestEvent, Lake, Random, randomEvents, TestStream } from "../../test/support/lake.js";
import { farthest } from "./farthest.js";
import type { ParkedEvents } from "./parked-format.js";
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
    const bytes = encodeTestEvent(event!);
    await parked.append("third", {
      bytes,
      count: 1,
      starts: Uint32Array.of(0),
      ends: Uint32Array.of(bytes.length),
      partitions: ["7"],
      positions: ["0000000000000012"],
      receivedAt: Float64Array.of(5),
    } as unknown as ParkedEvents);
    expect(await farthest({ ...lake.context, stream: "third" })).toEqual(
      new Map([["7", "0000000000000012"]]),
    );
  } finally {
    await lake.close();
  }
});
