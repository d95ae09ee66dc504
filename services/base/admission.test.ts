import { describe, expect, test } from "vitest";
import { Admission, type Reservation } from "./admission.js";
import { TributaryError } from "./errors.js";

const KiB = 1024;
/** What a request occupies by being open. */
const OPEN = 16 * KiB;
const busy = expect.objectContaining({ code: "TRB-BUS-BUSY" }) as Error;

function setUp(maxInFlightBytes: number) {
  const admission = new Admission(maxInFlightBytes, () => new TributaryError("TRB-BUS-BUSY"));
  const dismissed: string[] = [];
  const enter = (producer: string, name = producer): Reservation =>
    admission.enter(producer, (error: TributaryError) => dismissed.push(`${name} ${error.code}`) > 0);
  return { admission, dismissed, enter };
}

describe("admission", () => {
  test("counts what is held, and nothing once it is released", () => {
    const { admission, enter } = setUp(1000 * KiB);
    const request = enter("a");
    request.grow(100);
    request.grow(20);
    expect(admission.inFlightBytes).toBe(OPEN + 120);
    request.release();
    request.release();
    expect(admission.inFlightBytes).toBe(0);
  });

  test("lets one request alone pass, whatever its size; a second one of that producer waits", () => {
    const { enter, admission } = setUp(100 * KiB);
    const first = enter("a");
    first.grow(500 * KiB);
    expect(() => enter("a")).toThrow(busy);
    expect(admission.inFlightBytes).toBe(OPEN + 500 * KiB);
    first.release();
    enter("a").grow(500 * KiB);
  });

  test("lets one producer alone use everything", () => {
    const { enter, dismissed } = setUp(100 * KiB);
    for (let i = 0; i < 5; i++) enter("a").grow(4 * KiB);
    expect(() => enter("a")).toThrow(busy);
    expect(dismissed).toEqual([]);
  });

  test("gives another its share, for which the largest bodies that still arrive are sent away", () => {
    const { admission, enter, dismissed } = setUp(400 * KiB);
    enter("a", "small").grow(50 * KiB);
    enter("a", "large").grow(150 * KiB);
    enter("a", "middle").grow(100 * KiB);
    const b = enter("b");
    b.grow(100 * KiB);
    expect(dismissed).toEqual(["large TRB-BUS-BUSY"]);
    expect(admission.inFlightBytes).toBe(3 * OPEN + 250 * KiB);
    // Above its share the second one gets what is free, and nothing is taken for it.
    b.grow(100 * KiB);
    expect(() => b.grow(100 * KiB)).toThrow(busy);
    expect(dismissed).toHaveLength(1);
  });

  test("shares among those who have requests open, not those who had", () => {
    const { enter } = setUp(400 * KiB);
    for (let i = 0; i < 10; i++) enter(`gone ${i}`).release();
    enter("a").grow(300 * KiB);
    enter("b").grow(150 * KiB);
  });

  test("sends nobody away who is within the share, nor who is being stored", () => {
    const { admission, enter, dismissed } = setUp(300 * KiB);
    const stored = enter("a", "stored");
    stored.become(200 * KiB, () => false);
    const b = enter("b");
    b.grow(60 * KiB);
    const c = enter("c");
    // All that can be had is taken, but the share is given all the same: what is stored is gone soon.
    c.grow(70 * KiB);
    expect(dismissed).toEqual([]);
    expect(admission.inFlightBytes).toBeGreaterThan(300 * KiB);
    expect(() => c.grow(30 * KiB)).toThrow(busy);
    stored.release();
    c.grow(30 * KiB);
  });

  test("a hundred producers that take what they can never get beyond twice the limit, and each gets its share", () => {
    const { admission, enter } = setUp(10_000 * KiB);
    const greedy = enter("greedy");
    for (let i = 0; i < 90; i++) greedy.grow(100 * KiB);
    for (let i = 0; i < 99; i++) enter(`p${i}`).grow(10_000 * KiB * 0.01 - OPEN);
    expect(admission.inFlightBytes).toBeLessThanOrEqual(20_000 * KiB);
  });

  test("counts an answer in place of the body, also beyond the limit, until it has left", () => {
    const { admission, enter } = setUp(200 * KiB);
    const request = enter("a");
    request.grow(100 * KiB);
    request.become(300 * KiB, () => false);
    expect(admission.inFlightBytes).toBe(OPEN + 300 * KiB);
    expect(() => enter("a")).toThrow(busy);
    request.become(10, () => false);
    expect(admission.inFlightBytes).toBe(OPEN + 10);
    request.release();
    request.become(300 * KiB, () => false);
    expect(admission.inFlightBytes).toBe(0);
  });

  test("gives up what says that it can be, and leaves what says that it cannot", () => {
    const { admission, enter } = setUp(400 * KiB);
    const given: string[] = [];
    enter("a").become(180 * KiB, () => false);
    enter("a").become(150 * KiB, () => given.push("read slowly") > 0);
    enter("b").grow(100 * KiB);
    expect(given).toEqual(["read slowly"]);
    expect(admission.inFlightBytes).toBe(2 * OPEN + 280 * KiB);
  });

  test("what was given up takes nothing more", () => {
    const { admission, enter } = setUp(100 * KiB);
    const request = enter("a");
    request.release();
    expect(() => request.grow(1)).toThrow(busy);
    expect(admission.inFlightBytes).toBe(0);
  });
});
