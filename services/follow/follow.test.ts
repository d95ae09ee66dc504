import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { testRegistry } from "../../test/support/bus-server.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { MemoryStore } from "../../test/support/memory-store.js";
import { type EventInit, encodeEvent } from "../contracts/encode-event.js";
import { uriOf } from "../contracts/payload-reference.js";
import { EventBatch } from "../ingest/event-batch.js";
import { whole } from "../ingest/payloads.js";
import { winnersOf } from "../ingest/winners.js";
import { Offloaded } from "../offload/offloaded.js";
import { EntityKeys } from "../table/entity-keys.js";
import { compareOrder, WORDS } from "../table/order.js";
import type { Change } from "./change.js";
import { type FollowedTo, follow } from "./follow.js";

const File = testRegistry.codec("scm.v1.File");
const fileEvent = (fields: Partial<EventInit> = {}, path = "a.ts"): Buffer =>
  encodeEvent({
    tenantId: "acme",
    entityType: "scm.v1.File",
    entityId: path,
    operation: 2,
    version: 7,
    payload: { value: Buffer.from(File.encode(File.create({ path, change_count: 3 })).finish()) },
    ...fields,
  });

const deletion = (fields: Partial<EventInit>): Buffer =>
  encodeEvent({
    tenantId: "acme",
    entityType: "scm.v1.File",
    entityId: "b.ts",
    version: 7,
    ...fields,
    operation: 3,
  });

const store = new MemoryStore();
const payloads = new Offloaded(store, 1e9);
const path = (text: string): Buffer => Buffer.from(File.encode(File.create({ path: text })).finish());
/** The event with its payload in the store. */
async function offloaded(value: Buffer, fields: Partial<EventInit> = {}): Promise<Buffer> {
  const reference = await payloads.put("acme", "type.googleapis.com/scm.v1.File", value);
  return encodeEvent({
    tenantId: "acme",
    entityType: "scm.v1.File",
    entityId: "a.ts",
    operation: 2,
    version: 7,
    reference,
    ...fields,
  });
}

async function followed(reader: MemoryReader, from: FollowedTo | "oldest" | "next") {
  const changes: Change[] = [];
  let unreadable = 0;
  let to: FollowedTo | undefined;
  for await (const some of follow({ reader, registry: testRegistry, payloads, from, untilHead: true })) {
    changes.push(...some.changes);
    unreadable += some.unreadable;
    to = some.to;
  }
  return { changes, unreadable, to };
}

describe("a follower", () => {
  test("gets every event with its payload in JSON and where it stands, then goes on where it ended", async () => {
    const reader = new MemoryReader("s");
    const at = reader.append(
      1,
      fileEvent({
        occurredAt: { seconds: 1_700_000_000, nanos: 123_456_789 },
        eventId: "e",
        attributes: { k: "v" },
      }),
    );
    reader.append(0, deletion({}));
    const first = await followed(reader, "oldest");
    expect(first.changes).toHaveLength(2);
    const change = first.changes.find(({ entityId }) => entityId === "a.ts")!;
    expect(change).toMatchObject({
      tenantId: "acme",
      entityType: "scm.v1.File",
      operation: "UPDATED",
      version: 7n,
      occurredAt: "2023-11-14T22:13:20.123456Z",
      payload: { path: "a.ts", changeCount: 3 },
      eventId: "e",
    });
    expect(Object.fromEntries(change.attributes)).toEqual({ k: "v" });
    expect(`${change.partition}/${change.position}`).toBe(at);
    const deleted = first.changes.find(({ entityId }) => entityId === "b.ts")!;
    expect(deleted).toMatchObject({ operation: "DELETED", payload: undefined, occurredAt: undefined });
    reader.append(2, fileEvent({}, "c.ts"));
    const rest = await followed(reader, JSON.parse(JSON.stringify(first.to)) as FollowedTo);
    expect(rest.changes.map(({ entityId }) => entityId)).toEqual(["c.ts"]);
    expect((await followed(reader, "next")).changes).toEqual([]);
  });

  test("gets payloads that did not travel with their events, as those that did", async () => {
    const reader = new MemoryReader("s");
    const value = path("x");
    reader.append(0, fileEvent({ payload: { value } }));
    reader.append(0, await offloaded(value));
    reader.append(0, await offloaded(gzipSync(value), { compression: 1 }));
    const { changes } = await followed(reader, "oldest");
    expect(changes.map(({ payload }) => payload)).toEqual([{ path: "x" }, { path: "x" }, { path: "x" }]);
    expect(changes.map(({ payloadBytes }) => payloadBytes?.equals(value))).toEqual([true, true, true]);
    expect(changes.map(({ payloadFault }) => payloadFault)).toEqual([undefined, undefined, undefined]);
    expect(new Set(changes.map(({ order }) => order)).size).toBe(1);
  });

  test("gets no more payloads at once than memory is meant to hold, however small they were packed", async () => {
    const reader = new MemoryReader("s");
    const value = gzipSync(path(" ".repeat(999_990)));
    for (let i = 0; i < 100; i++) reader.append(0, fileEvent({ payload: { value }, compression: 1 }, `${i}`));
    const portions: number[] = [];
    for await (const { changes } of follow({
      reader,
      registry: testRegistry,
      payloads,
      from: "oldest",
      untilHead: true,
    })) {
      portions.push(changes.reduce((sum, { payloadBytes }) => sum + payloadBytes!.length, 0));
    }
    expect(Math.max(...portions)).toBeLessThan(65 * 1024 * 1024);
    expect(portions.reduce((sum, bytes) => sum + bytes, 0)).toBe(100 * path(" ".repeat(999_990)).length);
  });

  test("is told why a payload is not to be had", async () => {
    const reader = new MemoryReader("s");
    const keyOf = (value: Buffer) => uriOf("acme", createHash("sha256").update(value).digest());
    for (const text of ["missing", "rotten", "short"]) reader.append(0, await offloaded(path(text)));
    // Another tenant's: not even looked for.
    reader.append(0, await offloaded(path("foreign"), { tenantId: "globex" }));
    await store.delete([keyOf(path("missing"))]);
    await store.put(keyOf(path("rotten")), Buffer.from(path("rotten")).fill(7, 5));
    await store.put(keyOf(path("short")), path("short").subarray(1));
    const { changes, unreadable } = await followed(reader, "oldest");
    expect(unreadable).toBe(0);
    expect(changes.map(({ payload, payloadFault }) => [payload, payloadFault?.code])).toEqual([
      [undefined, "TRB-EVENT-PAYLOAD-MISSING"],
      [undefined, "TRB-EVENT-PAYLOAD-CORRUPT"],
      [undefined, "TRB-EVENT-PAYLOAD-CORRUPT"],
      [undefined, "TRB-EVENT-PAYLOAD-MISSING"],
    ]);
    expect(changes[0]!.payloadFault?.reason).toBe("the object store does not hold the payload");
  });

  test("has no more large payloads at once than memory holds, and goes on from between them", async () => {
    const reader = new MemoryReader("s");
    // Most of it in a field that nobody knows, which takes no time to read.
    const unknown = Buffer.concat([
      Buffer.from([0xc2, 0x3e, 0x80, 0x87, 0xa7, 0x0e]),
      Buffer.alloc(30_000_000),
    ]);
    for (let i = 0; i < 4; i++) reader.append(0, await offloaded(Buffer.concat([path(String(i)), unknown])));
    const seen: { readonly count: number; readonly at: string | undefined }[] = [];
    let middle: FollowedTo | undefined;
    for await (const some of follow({
      reader,
      registry: testRegistry,
      payloads,
      from: "oldest",
      untilHead: true,
    })) {
      seen.push({ count: some.changes.length, at: some.to.positions["0"] });
      middle ??= some.to;
    }
    expect(seen.map(({ count, at }) => [count, Number(at)])).toEqual([
      [3, 3],
      [1, 4],
    ]);
    expect((await followed(reader, middle!)).changes).toHaveLength(1);
  });

  test("builds only what is wanted, and still moves past the rest; what cannot be read is counted", async () => {
    const reader = new MemoryReader("s");
    reader.append(0, fileEvent({ tenantId: "globex" }));
    reader.append(0, Buffer.from("no event"));
    reader.append(0, fileEvent({ payload: { value: Buffer.from([0xff]) } }));
    reader.append(0, fileEvent());
    const changes: Change[] = [];
    let last: { unreadable: number; to: FollowedTo } = { unreadable: -1, to: { stream: "", positions: {} } };
    const wanted = ({ tenantId }: { tenantId: string }) => tenantId === "acme";
    for await (const some of follow({
      reader,
      registry: testRegistry,
      payloads,
      from: "oldest",
      wanted,
      untilHead: true,
    })) {
      changes.push(...some.changes);
      last = some;
    }
    expect(changes.map(({ tenantId }) => tenantId)).toEqual(["acme"]);
    expect(last).toMatchObject({ unreadable: 2, to: { stream: "s", positions: { 0: "0000000000000004" } } });
  });

  test("is refused where another stream, or one that was set back, would be taken for its own", async () => {
    const reader = new MemoryReader("s");
    for (let i = 0; i < 4; i++) reader.append(0, fileEvent({}, `${i}`));
    const { to } = await followed(reader, "oldest");
    await expect(followed(reader, { ...to!, stream: "t" })).rejects.toMatchObject({ code: "TRB-CONFIG" });
    reader.setBack(2);
    await expect(followed(reader, to!)).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
  });
});

test("orders of changes compare as last-write-wins does in tables", async () => {
  const keys = new EntityKeys("scm.v1.File");
  const event = fc.record({
    operation: fc.constantFrom(1, 2, 3),
    version: fc.constantFrom(1, 2, 255, 256, 2 ** 40),
    seconds: fc.constantFrom(undefined, -5, 0, 1, 1_700_000_000),
    path: fc.constantFrom("x", "y", "z"),
  });
  let ties = 0;
  const twice = event.map((one) => [one, one] as const);
  await fc.assert(
    fc.asyncProperty(fc.oneof({ weight: 9, arbitrary: fc.tuple(event, event) }, twice), async (pair) => {
      const reader = new MemoryReader("s");
      const batch = new EventBatch("scm.v1.File", "s");
      for (const [i, { operation, version, seconds, path }] of pair.entries()) {
        const occurred = seconds === undefined ? {} : { occurredAt: { seconds, nanos: 5_000 } };
        const fields = { entityId: "same", operation, version, ...occurred };
        const bytes = operation === 3 ? deletion(fields) : fileEvent(fields, path);
        reader.append(0, bytes);
        batch.add(bytes, 0, bytes.length, "0", `${i}`, 0);
      }
      const { order } = winnersOf(whole(batch), keys);
      const expected = Math.sign(compareOrder(order, 0, order, WORDS));
      const [a, b] = (await followed(reader, "oldest")).changes.map((change) => change.order);
      expect(a! < b! ? -1 : a! > b! ? 1 : 0).toBe(expected);
      if (expected === 0) ties++;
    }),
    { numRuns: 500 },
  );
  expect(ties).toBeGreaterThan(0);
});
