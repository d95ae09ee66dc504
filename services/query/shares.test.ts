import { beforeEach, describe, expect, test } from "vitest";
import type { TributaryError } from "../base/errors.js";
import { type Claim, type ShareLimits, Shares } from "./shares.js";

const limits: ShareLimits = { running: 3, runningPerTenant: 2, waiting: 8, waitingPerTenant: 4 };

/** What happened, in order: "+a1" started, "-a1" refused, "~a1" asked to yield. */
let log: string[];
let shares: Shares;
beforeEach(() => {
  log = [];
  shares = new Shares(limits);
});

const query = (name: string, yielded = false): Claim => ({
  tenant: name[0]!,
  yielded,
  start: () => log.push(`+${name}`),
  refuse: (error: TributaryError) => log.push(`-${name} ${error.code}`),
  yield: () => log.push(`~${name}`),
});

const claim = (name: string, yielded = false): Claim => {
  const made = query(name, yielded);
  shares.claim(made);
  return made;
};
const news = (): string[] => log.splice(0);

describe("running", () => {
  test("a tenant has its share of the places and leaves the rest to others", () => {
    for (const name of ["a1", "a2", "a3"]) claim(name);
    expect(news()).toEqual(["+a1", "+a2"]);
    claim("b1");
    expect(news()).toEqual(["+b1"]);
    expect([shares.running, shares.waiting]).toEqual([3, 1]);
  });

  test("what one tenant runs is counted again when a place is free", () => {
    const [a1, , , b1] = ["a1", "a2", "a3", "b1"].map((name) => claim(name));
    news();
    shares.release(b1!);
    expect(news()).toEqual([]);
    shares.release(a1!);
    expect(news()).toEqual(["+a3"]);
  });

  test("a release counts once", () => {
    const a1 = claim("a1");
    shares.release(a1);
    shares.release(a1);
    expect(shares.running).toBe(0);
  });
});

describe("turns", () => {
  test("who has the fewest running goes first, then who waits longest for a turn", () => {
    const first = ["a1", "a2", "b1"].map((name) => claim(name));
    for (const name of ["a3", "a4", "b2", "b3", "c1", "d1"]) claim(name);
    news();
    shares.release(first[2]!);
    // Nothing of b, c and d runs; b came first.
    expect(news()).toEqual(["+b2"]);
    shares.release(first[0]!);
    expect(news()).toEqual(["+c1"]);
    shares.release(first[1]!);
    // Nothing of a runs any more, and its last turn is older than d's arrival.
    expect(news()).toEqual(["+a3"]);
  });

  test("tenants take turns, however many queries each of them has waiting", () => {
    shares = new Shares({ running: 1, runningPerTenant: 1, waiting: 20, waitingPerTenant: 10 });
    const all = new Map<string, Claim>();
    for (const name of ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]) all.set(name, claim(name));
    const order: string[] = [];
    for (let last = news()[0]; last !== undefined; last = news()[0]) {
      order.push(last.slice(1));
      shares.release(all.get(last.slice(1))!);
    }
    expect(order).toEqual(["a1", "a2", "b1", "c1", "a3", "b2", "a4"]);
  });
});

describe("waiting", () => {
  test("what is beyond a tenant's share is refused, and only that", () => {
    for (let at = 1; at <= 8; at++) claim(`a${at}`);
    expect(news()).toEqual(["+a1", "+a2", "-a7 TRB-QUERY-BUSY", "-a8 TRB-QUERY-BUSY"]);
    for (const name of ["b1", "b2"]) claim(name);
    expect(news()).toEqual(["+b1"]);
    expect(shares.waiting).toBe(5);
  });

  test("where too many wait in all, who has most waiting makes room", () => {
    for (const tenant of ["a", "b", "c"]) for (let at = 1; at <= 4; at++) claim(`${tenant}${at}`);
    news();
    // a1, a2 and b1 run; a3, a4, b2, b3, b4 and c1 to c3 wait, c4 was one too many.
    expect(shares.waiting).toBe(8);
    claim("d1");
    expect(news()).toEqual(["-b4 TRB-QUERY-BUSY"]);
    claim("d2");
    expect(news()).toEqual(["-c3 TRB-QUERY-BUSY"]);
    expect(shares.waiting).toBe(8);
  });

  test("a tenant that asks for more than any other has waiting makes room itself", () => {
    for (const name of ["a1", "a2", "b1", "a3", "a4", "b2", "b3", "c1", "c2", "d1", "d2"]) claim(name);
    news();
    claim("d3");
    expect(news()).toEqual(["-d3 TRB-QUERY-BUSY"]);
  });

  test("who withdraws is not started, and leaves a place in the line", () => {
    const [, , a3, a4] = ["a1", "a2", "a3", "a4"].map((name) => claim(name));
    shares.withdraw(a3!);
    shares.withdraw(a3!);
    expect(shares.waiting).toBe(1);
    shares.withdraw(a4!);
    expect(shares.waiting).toBe(0);
    news();
    claim("b1");
    expect(news()).toEqual(["+b1"]);
  });

  test("all that wait can be refused", async () => {
    const { TributaryError } = await import("../base/errors.js");
    for (const name of ["a1", "a2", "a3", "a4"]) claim(name);
    news();
    shares.refuseAll(() => new TributaryError("TRB-BUS-DRAINING"));
    expect(news()).toEqual(["-a3 TRB-BUS-DRAINING", "-a4 TRB-BUS-DRAINING"]);
    expect(shares.waiting).toBe(0);
  });
});

describe("long queries of several tenants", () => {
  test("the newest yields, once, to a tenant that has nothing running, and to no other", () => {
    const [a1, a2, b1] = ["a1", "a2", "b1"].map((name) => claim(name));
    for (const one of [a1, a2, b1]) shares.takesLong(one!);
    expect(news()).toEqual(["+a1", "+a2", "+b1"]);
    claim("b2");
    expect(news()).toEqual([]);
    claim("c1");
    expect(news()).toEqual(["~b1"]);
    claim("d1");
    expect(news()).toEqual([]);
    shares.release(b1!);
    expect(news()).toEqual(["+c1"]);
  });

  test("nobody yields while a place has a query that may soon end", () => {
    const [a1, a2, b1] = ["a1", "a2", "b1"].map((name) => claim(name));
    claim("c1");
    shares.takesLong(a1!);
    shares.takesLong(a2!);
    expect(news()).toEqual(["+a1", "+a2", "+b1"]);
    shares.takesLong(b1!);
    expect(news()).toEqual(["~b1"]);
  });

  test("what has yielded keeps its next place, and leaves one that others can have", () => {
    const [a1, a2, b1] = ["a1", "a2", "b1"].map((name) => claim(name));
    for (const one of [a1, a2, b1]) shares.takesLong(one!);
    const c1 = claim("c1");
    shares.release(b1!);
    claim("b1", true);
    shares.takesLong(c1);
    expect(news()).toEqual(["+a1", "+a2", "+b1", "~b1", "+c1"]);
    // c1 yields too; with a1's end one place is for what has yielded, and it is b's.
    claim("d1");
    expect(news()).toEqual(["~c1"]);
    shares.release(c1);
    claim("c1", true);
    expect(news()).toEqual(["+d1"]);
    shares.release(a1!);
    expect(news()).toEqual(["+b1"]);
    shares.release(a2!);
    expect(news()).toEqual(["+c1"]);
    // Two of three places now hold what has yielded: a third waits, a young one does not.
    claim("e1", true);
    expect(news()).toEqual([]);
    claim("f1");
    expect(news()).toEqual([]);
    expect(shares.running).toBe(3);
  });

  test("what waits after it has yielded counts as running: a tenant makes others wait for its share only", () => {
    const [a1, a2, b1, b2] = ["a1", "a2", "b1", "b2"].map((name) => claim(name));
    for (const one of [a1, a2, b1]) shares.takesLong(one!);
    claim("c1");
    expect(news()).toEqual(["+a1", "+a2", "+b1", "~b1"]);
    shares.release(b1!);
    claim("b1", true);
    shares.release(a1!);
    // Of b, one runs again. Of its two, that is all, whatever else it sends.
    expect(news()).toEqual(["+c1", "+b1"]);
    shares.withdraw(b2!);
    const d1 = claim("d1");
    shares.release(a2!);
    expect(news()).toEqual(["+d1"]);
    for (const name of ["b3", "b4"]) claim(name, true);
    shares.release(d1);
    expect(news()).toEqual(["+b4"]);
    for (const name of ["a3", "a4", "b5"]) claim(name);
    expect(news()).toEqual([]);
    // b has two running and one that has yielded.
    expect([shares.running, shares.waiting]).toEqual([3, 4]);
  });

  test("one place is never given to what has yielded, nor to a tenant whose share waits after yielding", () => {
    for (const name of ["x1", "y1", "b1", "b2"]) claim(name, true);
    expect(news()).toEqual(["+x1", "+y1"]);
    claim("b3");
    expect(news()).toEqual([]);
    claim("c1");
    expect(news()).toEqual(["+c1"]);
  });

  test("what has yielded is within its tenant's share too", () => {
    shares = new Shares({ ...limits, running: 4 });
    for (const name of ["a1", "a2"]) claim(name);
    claim("a3", true);
    expect(news()).toEqual(["+a1", "+a2"]);
  });

  test("what has yielded does not yield again, though it is the newest", () => {
    const [a1, b1] = ["a1", "b1"].map((name) => claim(name));
    claim("y1", true);
    for (const one of [a1, b1]) shares.takesLong(one!);
    claim("c1");
    expect(news()).toEqual(["+a1", "+b1", "+y1", "~b1"]);
  });

  test("with a single place, a long query keeps it", () => {
    shares = new Shares({ running: 1, runningPerTenant: 1, waiting: 8, waitingPerTenant: 4 });
    shares.takesLong(claim("a1"));
    claim("b1");
    expect(news()).toEqual(["+a1"]);
    const yielded = query("c1", true);
    shares.claim(yielded);
    expect(shares.waiting).toBe(2);
  });
});
