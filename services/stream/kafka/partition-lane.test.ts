import { beforeEach, expect, test, vi } from "vitest";
import type { Appended } from "../change-stream.js";
import { pack } from "./codecs.js";
import { PartitionLane } from "./partition-lane.js";
import { PendingAppend } from "./pending-append.js";

vi.mock("./codecs.js", () => ({ pack: vi.fn() }));

let lane: PartitionLane;
beforeEach(() => {
  lane = new PartitionLane(0, () => 1024 * 1024, "none");
  lane.identify({ id: 1n, epoch: 0 });
});

function append(): Promise<Appended> {
  const done = new Promise<Appended>((resolve, reject) => {
    const pending = new PendingAppend(["0"], new Uint16Array(1), 5, resolve, reject);
    lane.add(pending, 0, [Buffer.from("event"), 0, 5], undefined, Date.now());
  });
  done.catch(() => undefined);
  return done;
}

/** One that has failed at nothing takes events at once. */
function expectFresh(): void {
  expect(lane.isEmpty).toBe(true);
  expect(lane.isDown(-1)).toBe(false);
  expect(lane.notBefore).toBe(0);
}

test("a batch that is stored after failures leaves the lane as it was", async () => {
  const done = append();
  await lane.next();
  expect(lane.again(20_000, 2_000)).toBe(true);
  expect(lane.isDown(-1)).toBe(true);
  lane.stored(7);
  await done;
  expectFresh();
});

test("a batch that turns out too large after a failure does not leave the lane down", async () => {
  const done = append();
  await lane.next();
  lane.again(20_000, 2_000);
  lane.oversized(new Error("MESSAGE_TOO_LARGE"));
  expect((await done).tooLarge).toEqual(new Set([0]));
  expectFresh();
});

test("a batch in doubt that is rejected after a failure does not leave the lane down", async () => {
  const done = append();
  await lane.next();
  lane.doubt();
  lane.again(20_000, 2_000);
  // The brokers do not know our count any more.
  expect(lane.forget()).toBe(false);
  lane.reject(new Error("UNKNOWN_PRODUCER_ID"));
  await expect(done).rejects.toThrow();
  expectFresh();
});

test("a batch that cannot be packed is tried again, and those who wait for it are told in the end", async () => {
  lane = new PartitionLane(0, () => 1024 * 1024, "gzip");
  lane.identify({ id: 1n, epoch: 0 });
  vi.mocked(pack).mockRejectedValue(new RangeError("no memory"));
  const both = [append()];
  const next = lane.next();
  both.push(append());
  await expect(next).rejects.toThrow("no memory");
  expect(lane.isEmpty).toBe(false);
  vi.mocked(pack).mockResolvedValueOnce({ records: Buffer.from("packed"), codec: 1 });
  await lane.next();
  lane.stored(7);
  expect((await both[0]!).positions).toEqual([expect.stringMatching(/7$/)]);
  await expect(lane.next()).rejects.toThrow("no memory");
  lane.giveUp(new Error("given up"));
  await expect(both[1]).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
  expectFresh();
});
