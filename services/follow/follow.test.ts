import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { testRegistry } from "../../test/support/bus-server.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { type EventInit, encodeEvent } from "../contracts/encode-event.js";
import { EventBatch } from "../ingest/event-batch.js";
import { whole } from "../ingest/payloads.js";
import { winnersOf } from "../ingest/winners.js";
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

async function followed(reader: MemoryReader, from: FollowedTo | "oldest" | "next") {
  const changes: Change[] = [];
  let unreadable = 0;
  let to: FollowedTo | undefined;
  for await (const some of follow({ reader, registry: testRegistry, from, untilHead: true })) {
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
  await fc.assert(
    fc.asyncProperty(event, event, async (...pair) => {
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
