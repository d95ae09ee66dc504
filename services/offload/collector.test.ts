import { createHash } from "node:crypto";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { Random, seeds } from "../../test/support/lake.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { MemoryStore } from "../../test/support/memory-store.js";
import { TurnScheduler } from "../../test/support/turn-scheduler.js";
import { encodeEvent } from "../contracts/encode-event.js";
import { type PayloadReference, uriOf } from "../contracts/payload-reference.js";
import type { ObjectStore } from "../storage/object-store.js";
import { Collector } from "./collector.js";
import { Offloaded } from "./offloaded.js";

/** Payloads that nobody names any more, and those that somebody does. */

const HOUR = 3600_000;
const DAY = 24 * HOUR;
const KEEP = 14 * DAY;
const TYPE = "scm.v1.File";
const TYPE_URL = `type.googleapis.com/${TYPE}`;

let store: MemoryStore;
let reader: MemoryReader;
beforeEach(() => {
  vi.useFakeTimers({ toFake: ["Date"], now: 1_800_000_000_000 });
  store = new MemoryStore();
  reader = new MemoryReader("s");
});
afterEach(() => {
  vi.useRealTimers();
});
const pass = (ms: number) => vi.setSystemTime(Date.now() + ms);

function referenceTo(payload: Buffer, tenant = "acme"): PayloadReference {
  const sha256 = createHash("sha256").update(payload).digest();
  return { uri: uriOf(tenant, sha256), typeUrl: TYPE_URL, sizeBytes: payload.length, sha256 };
}
const eventOf = (reference: PayloadReference, tenant = "acme"): Buffer =>
  encodeEvent({ tenantId: tenant, entityType: TYPE, entityId: "e", operation: 2, version: 1, reference });

const offloadedIn = (some: ObjectStore) => new Offloaded(some, KEEP);
const collectorOf = (some: ObjectStore = store, waiting = () => reader.waiting()) =>
  new Collector({ store: some, keepMs: KEEP, waiting });
const gets = async (reference: PayloadReference): Promise<boolean> =>
  Buffer.isBuffer(await offloadedIn(store).fetch(reference));
async function keys(prefix = "offload/"): Promise<string[]> {
  const found: string[] = [];
  for await (const { key, bytes } of store.list(prefix))
    if (bytes > 0 || prefix !== "offload/") found.push(key);
  return found;
}

describe("a round of the collector", () => {
  const payload = Buffer.from("a payload");
  const reference = referenceTo(payload);

  test("takes away what nothing names, once it is old, and says what is left", async () => {
    await offloadedIn(store).put("acme", TYPE_URL, payload);
    pass(KEEP - HOUR);
    expect(await collectorOf().run()).toEqual({ objects: 1, bytes: 9, removed: 0, undecided: false });
    pass(2 * HOUR);
    expect(await collectorOf().run()).toMatchObject({ objects: 0, removed: 1 });
    expect(await offloadedIn(store).fetch(reference)).toBe("missing");
    expect(await offloadedIn(store).holds(reference)).toBe(false);
    expect(await collectorOf().run()).toMatchObject({ objects: 0, removed: 0 });
    // The same payload comes again.
    await offloadedIn(store).put("acme", TYPE_URL, payload);
    expect(await gets(reference)).toBe(true);
    pass(KEEP + HOUR);
    expect(await collectorOf().run()).toMatchObject({ objects: 0, removed: 1 });
  });

  test("leaves what has landed, was parked or set aside, however old", async () => {
    await offloadedIn(store).put("acme", TYPE_URL, payload);
    await offloadedIn(store).keepForGood([reference.uri]);
    pass(100 * KEEP);
    expect(await collectorOf().run()).toMatchObject({ objects: 1, removed: 0 });
    expect(await gets(reference)).toBe(true);
    expect(await keys("kept/")).toEqual([`kept/acme/${reference.sha256.toString("hex")}`]);
  });

  test("leaves what an event names that waits in a stream, of whatever tenant's name alone", async () => {
    for (const tenant of ["acme", "umbrella"]) await offloadedIn(store).put(tenant, TYPE_URL, payload);
    reader.append(1, Buffer.from("no event"));
    reader.append(1, eventOf(reference));
    pass(KEEP + HOUR);
    expect(await collectorOf().run()).toMatchObject({ objects: 1, removed: 1 });
    expect(await keys()).toEqual([reference.uri]);
  });

  test("takes nothing away where a stream cannot be read", async () => {
    await offloadedIn(store).put("acme", TYPE_URL, payload);
    pass(KEEP + HOUR);
    const down = async function* (): AsyncGenerator<never> {
      yield* [];
      throw new Error("down");
    };
    await expect(collectorOf(store, down).run()).rejects.toThrow("down");
    expect(await gets(reference)).toBe(true);
  });

  test("of a payload that stays takes away what a later one has replaced", async () => {
    await offloadedIn(store).put("acme", TYPE_URL, payload);
    for (let i = 0; i < 3; i++) {
      pass(KEEP * 0.6);
      expect(await offloadedIn(store).holds(reference)).toBe(true);
    }
    await offloadedIn(store).keepForGood([reference.uri]);
    expect(await keys()).toHaveLength(4);
    expect(await collectorOf().run()).toMatchObject({ objects: 2, removed: 2 });
    pass(10 * KEEP);
    expect(await collectorOf().run()).toMatchObject({ objects: 1, removed: 1 });
    expect(await gets(reference)).toBe(true);
  });

  test("begins where the one before has ended, so that nobody's garbage keeps another's there", async () => {
    const others = referenceTo(payload, "zeta");
    await store.put(others.uri, payload);
    const flood = async (count: number) => {
      for (let i = 0; i < count; i++)
        await store.put(uriOf("acme", createHash("sha256").update(`${Date.now()} ${i}`).digest()), payload);
    };
    await flood(10_000);
    pass(KEEP - HOUR);
    await flood(10_000);
    pass(2 * HOUR);
    const collector = collectorOf();
    expect(await collector.run()).toMatchObject({ removed: 10_000, objects: 10_001, bytes: 9 * 10_001 });
    // So many more have become old meanwhile.
    pass(KEEP);
    await collector.run();
    expect(await keys("offload/zeta/")).toEqual([others.uri]);
    expect((await store.stat(others.uri))?.bytes).toBe(0);
    // And around: what it has passed by is not forgotten.
    expect(await collector.run()).toMatchObject({ removed: 1, objects: 0, bytes: 0 });
  });

  test("leaves other objects alone", async () => {
    const others = ["offload/acme/x", "offload/y", `${reference.uri}x`, "raw/z", "kept/acme/q"];
    for (const key of others) await store.put(key, Buffer.from("other"));
    pass(100 * KEEP);
    expect(await collectorOf().run()).toEqual({ objects: 0, bytes: 0, removed: 0, undecided: false });
    for (const key of others) expect(await store.get(key)).toBeDefined();
  });
});

test("a collector that is frozen after its look at the streams leaves what was young when it listed", async () => {
  const payload = Buffer.from("a payload");
  const reference = referenceTo(payload);
  await offloadedIn(store).put("acme", TYPE_URL, payload);
  pass(0.6 * KEEP);
  // Anew beside the first, for an event that did not come in the end.
  expect(await offloadedIn(store).holds(reference)).toBe(true);
  pass(0.45 * KEEP);
  const frozen = async function* () {
    yield* reader.waiting();
    const seenAt = Date.now();
    expect(await offloadedIn(store).holds(reference)).toBe(true);
    expect(offloadedIn(store).mayBeGone(seenAt)).toBe(false);
    reader.append(0, eventOf(reference));
    pass(0.6 * KEEP);
  };
  expect(await collectorOf(store, frozen).run()).toMatchObject({ removed: 1 });
  expect(await gets(reference)).toBe(true);
});

test.each(["first", "later"])(
  "a collector that was frozen before it took the %s object away takes nothing that was put since",
  async (which) => {
    const payload = Buffer.from("a payload");
    const reference = referenceTo(payload);
    await offloadedIn(store).put("acme", TYPE_URL, payload);
    if (which === "later") {
      await store.put(reference.uri, Buffer.alloc(0));
      await offloadedIn(store).put("acme", TYPE_URL, payload);
    }
    pass(KEEP + HOUR);
    let wake: () => void = () => undefined;
    const awake = new Promise<void>((resolve) => {
      wake = resolve;
    });
    let isFrozen: () => void = () => undefined;
    const frozen = new Promise<void>((resolve) => {
      isFrozen = resolve;
    });
    const freezing = async () => {
      isFrozen();
      await awake;
    };
    const slow = overriding(store, {
      put: (key, bytes) => freezing().then(() => store.put(key, bytes)),
      delete: (gone) => freezing().then(() => store.delete(gone)),
    });
    const round = collectorOf(slow).run();
    await frozen;
    // Another one does it in its place, and the payload comes again.
    expect(await collectorOf().run()).toMatchObject({ removed: 1 });
    await offloadedIn(store).put("acme", TYPE_URL, payload);
    expect(await offloadedIn(store).holds(reference)).toBe(true);
    reader.append(0, eventOf(reference));
    wake();
    await round;
    expect(await gets(reference)).toBe(true);
  },
);

test("however collectors, buses and ingest are interleaved and frozen, no payload of an accepted event goes", async () => {
  const told = { accepted: 0, refused: 0, removed: 0, renewed: 0 };
  for (const seed of seeds(200)) {
    vi.setSystemTime(1_800_000_000_000);
    store = new MemoryStore();
    reader = new MemoryReader("s");
    const random = new Random(seed);
    const payloads = [Buffer.from("one"), Buffer.from("another")];
    const accepted: PayloadReference[] = [];
    // Whoever is at an operation then was frozen for so long.
    const scheduler = new TurnScheduler(random, () => {
      if (random.chance(0.15)) pass(random.pick([HOUR, 2 * DAY, 5 * DAY, 8 * DAY, 15 * DAY]));
      return false;
    });
    const start = (name: string, work: (own: ObjectStore) => Promise<void>) =>
      scheduler.start(name, store, (scheduled) =>
        work(
          overriding(scheduled, {
            async *list(prefix, startAfter) {
              for await (const info of store.list(prefix, startAfter)) {
                await scheduled.stat("between two of a listing");
                yield info;
              }
            },
          }),
        ),
      );
    const publish = async (own: ObjectStore): Promise<void> => {
      const offloaded = offloadedIn(own);
      for (let i = 0; i < 2; i++) {
        const payload = random.pick(payloads);
        const reference = referenceTo(payload);
        const seenAt = Date.now();
        if (random.chance(0.5)) await offloaded.put("acme", TYPE_URL, payload);
        else if (!(await offloaded.holds(reference))) continue;
        await own.stat("the stream");
        if (offloaded.mayBeGone(seenAt)) continue;
        await own.stat("the stream");
        reader.append(0, eventOf(reference));
        await own.stat("the stream");
        if (offloaded.mayBeGone(seenAt)) told.refused++;
        else accepted.push(reference);
      }
    };
    const ingest = async (own: ObjectStore): Promise<void> => {
      const offloaded = offloadedIn(own);
      for (let i = 0; i < 12; i++) {
        await own.stat("the stream");
        const end = reader.events.length;
        const uris = reader.events.slice(0, end).map(({ bytes }) => uriIn(bytes));
        await offloaded.keepForGood(uris);
        await own.stat("the stream");
        if (end > 0) reader.done = new Map([["0", reader.events[end - 1]!.position]]);
      }
    };
    const collect = async (own: ObjectStore): Promise<void> => {
      const waiting = async function* () {
        await own.stat("the stream");
        yield* reader.waiting();
        await own.stat("the stream");
      };
      for (let i = 0; i < 3; i++) told.removed += (await collectorOf(own, waiting).run()).removed;
    };
    // Uploaded, and not referred to yet.
    for (const payload of payloads)
      if (random.chance(0.5)) await offloadedIn(store).put("acme", TYPE_URL, payload);
    const all = [
      start("bus 1", publish),
      start("bus 2", publish),
      start("bus 3", publish),
      start("collector 1", collect),
      start("collector 2", collect),
      start("ingest", ingest),
    ];
    await scheduler.run();
    await Promise.all(all);
    for (const reference of accepted) {
      expect(await offloadedIn(store).fetch(reference), `TRIBUTARY_SEED=${seed}`).toBeInstanceOf(Buffer);
    }
    told.accepted += accepted.length;
    told.renewed += (await keys()).filter((key) => key.includes(".")).length;
  }
  // Each kind of thing has come about.
  expect(
    Object.values(told).every((count) => count > 0),
    JSON.stringify(told),
  ).toBe(true);
});

function uriIn(event: Buffer): string {
  const at = event.indexOf("offload/");
  return event.toString("latin1", at, at + "offload/acme/".length + 64);
}
