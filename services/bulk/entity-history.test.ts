import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import {
  encodeTestEvent,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  THING,
  winnersOf,
} from "../../test/support/lake.js";
import { encodeEvent } from "../contracts/encode-event.js";
import { withReference } from "../contracts/payload-reference.js";
import { EventBatch } from "../ingest/event-batch.js";
import { Offloaded } from "../offload/offloaded.js";
import { auditOf } from "../operate/audit-log.js";
import { entityHistory, type HistoryOptions } from "./entity-history.js";

const history = (
  lake: Lake,
  tenant: string,
  entityId: string,
  options: Partial<HistoryOptions> = {},
  store = lake.context.store,
) =>
  entityHistory(
    {
      store,
      duck: lake.context.duck,
      registry: lake.context.registry,
      payloads: new Offloaded(store, 1e9),
    },
    { tenant, entityType: THING, entityId },
    { by: "local:ann", limit: 1000, resolve: false, ...options },
  );

const keyOf = ({ tenant, id }: Pick<TestEvent, "tenant" | "id">) => `${tenant}\n${id}`;
const NAMES = ["", "CREATED", "UPDATED", "DELETED"];

test("an entity's events, all of them and nobody else's, in the order they came; the one that wins is marked", async () => {
  for (const seed of seeds(0)) {
    const events = randomEvents(new Random(seed), 150);
    const lake = await Lake.create();
    try {
      const stream = new TestStream("test");
      for (let at = 0; at < events.length; at += 12) await lake.land(stream.batch(events.slice(at, at + 12)));
      await lake.settled();
      const byKey = new Map<string, TestEvent[]>();
      for (const event of events) byKey.set(keyOf(event), [...(byKey.get(keyOf(event)) ?? []), event]);
      for (const best of new Random(seed).shuffle(winnersOf(events)).slice(0, 6)) {
        const own = byKey.get(keyOf(best))!;
        const { events: count, shown } = await history(lake, best.tenant, best.id);
        expect(count).toBe(own.length);
        const told = own.map((event) => [
          NAMES[event.operation],
          String(event.version),
          event.operation === 3 ? undefined : (event.thing.name ?? ""),
        ]);
        expect(
          shown.map(({ operation, version, payload }) => [
            operation,
            version,
            operation === "DELETED" ? undefined : ((payload as { name?: string }).name ?? ""),
          ]),
          `seed ${seed}`,
        ).toEqual(told);
        const winner = shown.findIndex(({ wins }) => wins);
        expect(shown.filter(({ wins }) => wins).length).toBe(1);
        expect(encodeTestEvent(own[winner]!), `seed ${seed}`).toEqual(encodeTestEvent(best));
        const last = await history(lake, best.tenant, best.id, { limit: 2 });
        expect(last).toEqual({ events: count, shown: shown.slice(-2) });
      }
      expect(await history(lake, "acme", "none of them")).toEqual({ events: 0, shown: [] });
    } finally {
      await lake.close();
    }
  }
});

test("who looked is durable before anything is read, by tenant; without that nothing is read", async () => {
  const lake = await Lake.create();
  try {
    await lake.land(new TestStream("test").batch([one("acme", "1")]));
    await history(lake, "acme", "1");
    await history(lake, "b.x-9", "2", { by: "operator@example" });
    const entries = [];
    for await (const entry of auditOf(lake.context.store, "acme")) entries.push(entry);
    expect(entries).toMatchObject([
      { by: "local:ann", action: "raw show", tenant: "acme", entityType: THING, entityId: "1" },
    ]);
    const full = overriding(lake.context.store, {
      put: async () => {
        throw new Error("disk full");
      },
      get: async () => {
        throw new Error("read");
      },
    });
    await expect(history(lake, "acme", "1", {}, full)).rejects.toThrow("disk full");
    for (const tenant of ["../acme", "", "a/b"])
      await expect(history(lake, tenant, "1")).rejects.toMatchObject({ code: "TRB-EVENT-TENANT" });
  } finally {
    await lake.close();
  }
});

const one = (tenant: string, id: string, version = 1n): TestEvent => ({
  tenant,
  id,
  operation: 1,
  version,
  thing: { name: `${id} of ${tenant}` },
});

test("only files that can hold rows of the tenant are read", async () => {
  const lake = await Lake.create({ compactAfterFiles: 100 });
  try {
    const stream = new TestStream("test");
    for (const tenant of ["a", "b", "c"]) await lake.land(stream.batch([one(tenant, "1")]));
    await lake.settled();
    const lent: string[] = [];
    const watched = overriding(lake.context.store, {
      withLocal: (keys, use) => {
        lent.push(...keys);
        return lake.context.store.withLocal(keys, use);
      },
    });
    const { shown } = await history(lake, "b", "1", {}, watched);
    expect(shown).toMatchObject([{ payload: { name: "1 of b" }, wins: true }]);
    expect(lent.filter((key) => key.endsWith(".parquet")).length).toBe(1);
  } finally {
    await lake.close();
  }
});

test("payloads elsewhere are told by reference, or fetched and checked; one that is missing or rotten does not win", async () => {
  const lake = await Lake.create();
  try {
    const { store } = lake.context;
    const payloads = new Offloaded(store, 1e9);
    const batch = new EventBatch(THING, "test");
    let position = 0;
    const add = (bytes: Buffer) =>
      batch.add(bytes, 0, bytes.length, "0", String(++position).padStart(12, "0"), 1_700_000_000_000);
    const elsewhere = async (version: bigint, name: string, there: Buffer | undefined) => {
      const payload = Buffer.concat([Buffer.from([10, name.length]), Buffer.from(name)]);
      const typeUrl = `type.googleapis.com/${THING}`;
      const sha256 = createHash("sha256").update(payload).digest();
      const uri = `offload/acme/${sha256.toString("hex")}`;
      if (there === undefined) await payloads.put("acme", typeUrl, payload);
      else if (there.length > 0) await store.put(uri, there);
      const bytes = encodeEvent({
        tenantId: "acme",
        entityType: THING,
        entityId: "1",
        operation: 2,
        version,
        attributes: { producer: "p" },
        eventId: `e${version}`,
      });
      add(withReference(bytes, 0, bytes.length, { uri, typeUrl, sizeBytes: payload.length, sha256 }));
    };
    await elsewhere(1n, "ann", undefined);
    await elsewhere(2n, "bob", undefined);
    await elsewhere(3n, "missing", Buffer.alloc(0));
    await elsewhere(4n, "rotten", Buffer.from("nnrotten."));
    const broken = encodeEvent({
      tenantId: "acme",
      entityType: THING,
      entityId: "1",
      operation: 2,
      version: 5n,
      payload: { value: Buffer.from([10, 9, 1]) },
    });
    add(broken);
    await lake.land(batch);
    await lake.settled();
    const plain = await history(lake, "acme", "1");
    expect(
      plain.shown.map(({ version, wins, payload, fault }) => [version, wins, payload, fault?.code]),
    ).toEqual([
      ["1", false, undefined, undefined],
      ["2", true, undefined, undefined],
      ["3", false, undefined, undefined],
      ["4", false, undefined, undefined],
      ["5", false, undefined, "TRB-EVENT-PAYLOAD-DECODE"],
    ]);
    expect(plain.shown[0]).toMatchObject({
      attributes: { producer: "p" },
      eventId: "e1",
      payloadReference: { sizeBytes: "5", uri: /^offload\/acme\/[0-9a-f]{64}$/ },
    });
    const resolved = await history(lake, "acme", "1", { resolve: true });
    expect(resolved.shown.map(({ payload, fault }) => payload ?? fault?.code)).toEqual([
      { name: "ann" },
      { name: "bob" },
      "TRB-EVENT-PAYLOAD-MISSING",
      "TRB-EVENT-PAYLOAD-CORRUPT",
      "TRB-EVENT-PAYLOAD-DECODE",
    ]);
    expect(await lake.rows()).toEqual([expect.stringContaining('"bob"')]);
  } finally {
    await lake.close();
  }
});
