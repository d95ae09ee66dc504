import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { MemoryStore } from "../../test/support/memory-store.js";
import { TributaryError } from "../base/errors.js";
import { uriOf } from "../contracts/payload-reference.js";
import { Offloaded } from "./offloaded.js";

/** What many want of the store at once. */

const DAY = 24 * 3600_000;
const KEEP = 14 * DAY;
const MANY = 50;

let store: MemoryStore;
beforeEach(() => {
  vi.useFakeTimers({ toFake: ["Date"], now: 1_800_000_000_000 });
  store = new MemoryStore();
});
afterEach(() => {
  vi.useRealTimers();
});
const pass = (ms: number) => vi.setSystemTime(Date.now() + ms);
const uriNamed = (name: string) => uriOf("acme", createHash("sha256").update(name).digest());
async function keysOf(prefix: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of store.list(prefix)) found.push(key);
  return found;
}

describe("an old payload", () => {
  const payload = Buffer.alloc(1000, 1);

  test.each(["refer to", "send"])("that many %s at once is put anew once", async (what) => {
    const offloaded = new Offloaded(store, KEEP);
    const reference = await offloaded.put("acme", "t/T", payload);
    pass(8 * DAY);
    const one = () => (what === "send" ? offloaded.put("acme", "t/T", payload) : offloaded.holds(reference));
    await Promise.all(Array.from({ length: MANY }, one));
    expect(await keysOf(reference.uri)).toHaveLength(2);
  });

  test("of one tenant does not wait for all that another one has", async () => {
    const offloaded = new Offloaded(store, KEEP);
    const put = (tenant: string, i: number) => offloaded.put(tenant, "t/T", Buffer.alloc(1000, i));
    const many = await Promise.all(Array.from({ length: MANY }, (_, i) => put("acme", i)));
    const few = await put("globex", 1);
    pass(8 * DAY);
    const ended: string[] = [];
    await Promise.all(
      [...many, few].map(async (reference) => {
        expect(await offloaded.holds(reference)).toBe(true);
        ended.push(reference.uri);
      }),
    );
    expect(ended.indexOf(few.uri)).toBeLessThan(3);
  });

  test("is not read for who wants to put it, but taken again", async () => {
    const offers = overriding(store, {
      presignPut: async (key) => ({ method: "PUT", url: key, headers: {} }),
      get: async () => {
        throw new Error("expected that it is not read");
      },
    });
    const offloaded = new Offloaded(offers, KEEP);
    const reference = await offloaded.put("acme", "t/T", payload);
    expect(await offloaded.offer(reference, 1000)).toBe("held");
    pass(8 * DAY);
    expect(await offloaded.offer(reference, 1000)).toMatchObject({
      url: expect.stringContaining(`${reference.uri}.`) as string,
    });
    expect(await keysOf(reference.uri)).toHaveLength(1);
  });
});

describe("payloads that are kept for good", () => {
  const uris = Array.from({ length: 100 }, (_, i) => uriNamed(`${i}`));
  let [now, most, puts] = [0, 0, 0];
  let failing = false;
  const slow = () =>
    overriding(store, {
      putIfAbsent: async (key, bytes) => {
        most = Math.max(most, ++now);
        puts++;
        await setImmediate();
        now--;
        if (failing) throw new TributaryError("TRB-STORE-FAILED");
        return store.putIfAbsent(key, bytes);
      },
    });
  beforeEach(() => {
    [now, most, puts, failing] = [0, 0, 0, false];
  });

  test("are not kept one after the other, nor all at once", async () => {
    await new Offloaded(slow(), KEEP).keepForGood(uris);
    expect(most).toBeGreaterThan(4);
    expect(most).toBeLessThan(50);
    expect(await keysOf("kept/")).toHaveLength(100);
  });

  test("are asked for once each, however often they are named and by whom at once", async () => {
    const offloaded = new Offloaded(slow(), KEEP);
    const twice = [...uris, ...uris];
    await Promise.all([offloaded.keepForGood(twice), offloaded.keepForGood(twice.reverse())]);
    await offloaded.keepForGood(uris);
    expect(puts).toBe(100);
  });

  test("are not said to be while the store fails; the next one who asks has it tried again", async () => {
    const offloaded = new Offloaded(slow(), KEEP);
    failing = true;
    const both = await Promise.allSettled([offloaded.keepForGood(uris), offloaded.keepForGood(uris)]);
    expect(both.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    failing = false;
    await offloaded.keepForGood(uris);
    expect(await keysOf("kept/")).toHaveLength(100);
  });
});
