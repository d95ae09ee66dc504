import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import protobuf from "protobufjs";
import { expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { Lake, type LakeOptions, THING, THINGS_SQL } from "../../test/support/lake.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { breakable, pipelineLake, startPipeline, until } from "../../test/support/pipeline-run.js";
import { TributaryError } from "../base/errors.js";
import { type EventInit, encodeEvent } from "../contracts/encode-event.js";
import { uriOf } from "../contracts/payload-reference.js";
import { DeltaTable } from "../table/delta-table.js";
import { withScan } from "../table/scan.js";
import { EventBatch } from "./event-batch.js";
import { rawRoot, rawSpec } from "./raw-table.js";
import { redrive, storedLetters } from "./redrive.js";

/** Payloads that lie in the object store, taken in by lanes and models. */

/** `name` of a Thing, which the model shows. */
const payloadOf = (name: string): Buffer => {
  const out = new protobuf.BufferWriter();
  out.uint32(10).string(name);
  return Buffer.from(out.finish());
};
const sha256 = (bytes: Uint8Array): Buffer => createHash("sha256").update(bytes).digest();
const keyOf = (payload: Uint8Array, tenant = "acme"): string => uriOf(tenant, sha256(payload));

const event = (id: string, payload: Buffer, more: Partial<EventInit> = {}): EventInit => ({
  tenantId: "acme",
  entityType: THING,
  entityId: id,
  operation: 1,
  version: 1,
  payload: { value: payload },
  ...more,
});
/** The same with its payload elsewhere. */
function referring(id: string, payload: Buffer, more: Partial<EventInit> = {}): EventInit {
  const { payload: _, ...rest } = event(id, payload, more);
  const typeUrl = `type.googleapis.com/${THING}`;
  return {
    ...rest,
    reference: { uri: keyOf(payload), typeUrl, sizeBytes: payload.length, sha256: sha256(payload) },
  };
}

let positions = 0;
function batchOf(...events: EventInit[]): EventBatch {
  const batch = new EventBatch(THING, "test");
  for (const one of events) {
    const bytes = encodeEvent(one);
    batch.add(bytes, 0, bytes.length, "0", String(++positions).padStart(12, "0"), 1_700_000_000_000);
  }
  return batch;
}

async function withLake(options: LakeOptions, use: (lake: Lake) => Promise<void>): Promise<void> {
  const lake = await Lake.create(options);
  try {
    await use(lake);
  } finally {
    await lake.close();
  }
}

const names = async (lake: Lake): Promise<(string | undefined)[]> =>
  (await lake.rows())
    .map((row) => (JSON.parse(row) as string[]).slice(1))
    .map(([id, , , , name]) => `${id} ${name}`);

test("what the model sees of an offloaded payload is what it sees of one that came along", async () => {
  await withLake({}, async (lake) => {
    const { store } = lake.context;
    const large = payloadOf("l".repeat(3_000_000));
    const packed = gzipSync(payloadOf("p".repeat(2_000_000)));
    for (const payload of [large, packed]) await store.put(keyOf(payload), payload);
    await (await lake.lane()).land(
      batchOf(
        event("inline", payloadOf("i")),
        referring("large", large),
        referring("packed", packed, { compression: 1 }),
        { ...event("gone", payloadOf("")), payload: undefined as never, operation: 3 },
      ),
    );
    await lake.settled();
    expect(await names(lake)).toEqual([
      "inline i",
      `large ${"l".repeat(3_000_000)}`,
      `packed ${"p".repeat(2_000_000)}`,
    ]);
    expect(await lake.deadLetters()).toEqual([]);
  });
});

test("of equal versions the same wins, whether its payload came along or not", async () => {
  const some = ["a", "b", "c", "d"].map(payloadOf);
  const winners = new Set<string>();
  for (const offloaded of [[], [0, 1, 2, 3], [1, 3], [0, 2]]) {
    await withLake({}, async (lake) => {
      for (const payload of some) await lake.context.store.put(keyOf(payload), payload);
      const events = some.map((payload, i) => (offloaded.includes(i) ? referring : event)("x", payload));
      await (await lake.lane()).land(batchOf(...events.slice(0, 2)));
      await (await lake.lane()).land(batchOf(...events.slice(2)));
      winners.add(JSON.stringify(await names(lake)));
    });
  }
  expect(winners.size).toBe(1);
});

test("a missing and a corrupted payload are dead letters with their reason, and well once they are repaired", async () => {
  await withLake({}, async (lake) => {
    const { store } = lake.context;
    const [missing, corrupt, short, good] = ["missing", "corrupt", "short", "good"].map(payloadOf);
    const damaged = Buffer.from(corrupt!);
    damaged[3]! ^= 1;
    await store.put(keyOf(corrupt!), damaged);
    await store.put(keyOf(short!), short!.subarray(1));
    await store.put(keyOf(good!), good!);
    // Of another tenant's there is nothing to be had, though it has the same bytes.
    await store.put(keyOf(missing!, "umbrella"), missing!);
    const events = [
      referring("missing", missing!, { attributes: { producer: "p" }, eventId: "e" }),
      referring("corrupt", corrupt!),
      referring("short", short!),
      referring("good", good!),
      event("inline", payloadOf("inline")),
    ];
    await (await lake.lane()).land(batchOf(...events));
    expect(await names(lake)).toEqual(["good good", "inline inline"]);
    const letters = await storedLetters(lake.context, {});
    expect(letters.map(({ entityId, code, reason }) => [entityId, code, reason]).sort()).toEqual([
      ["corrupt", "TRB-EVENT-PAYLOAD-CORRUPT", expect.stringMatching(/SHA-256/)],
      ["missing", "TRB-EVENT-PAYLOAD-MISSING", expect.stringMatching(/does not hold/)],
      ["short", "TRB-EVENT-PAYLOAD-CORRUPT", expect.stringMatching(/size/)],
    ]);
    const letter = letters.find(({ entityId }) => entityId === "missing")!;
    expect(letter.event.equals(encodeEvent(events[0]!))).toBe(true);
    expect((await redrive(lake.context, letters)).applied).toBe(0);
    for (const payload of [missing!, corrupt!, short!]) await store.put(keyOf(payload), payload);
    expect((await redrive(lake.context, letters)).applied).toBe(3);
    await (await lake.target()).table.refresh();
    expect(await names(lake)).toEqual(
      ["corrupt corrupt", "good good", "inline inline", "missing missing", "short short"].sort(),
    );
    expect(await lake.deadLetters()).toEqual([]);
  });
});

test("a reference that a producer past the bus made up is a dead letter, and fetches nothing", async () => {
  let gets: string[] = [];
  const store: LakeOptions["store"] = (inner) =>
    overriding(inner, {
      get: async (key) => {
        gets.push(key);
        return inner.get(key);
      },
    });
  await withLake({ store }, async (lake) => {
    const payload = payloadOf("secret");
    await lake.context.store.put(keyOf(payload, "umbrella"), payload);
    const honest = referring("x", payload);
    const lies = [
      { uri: keyOf(payload, "umbrella") },
      { uri: "offload/../raw/x" },
      { sizeBytes: -1 },
      { sha256: Buffer.alloc(3) },
      { typeUrl: "type.googleapis.com/other.v1.Type" },
    ].map((lie, i) => ({ ...honest, entityId: `x${i}`, reference: { ...honest.reference!, ...lie } }));
    gets = [];
    await (await lake.lane()).land(batchOf(...lies, event("inline", payloadOf("inline"))));
    expect(await names(lake)).toEqual(["inline inline"]);
    const letters = await storedLetters(lake.context, {});
    expect(letters.map(({ code }) => code)).toEqual(lies.map(() => "TRB-EVENT-PAYLOAD-MISSING"));
    expect(gets.filter((key) => key.startsWith("offload/"))).toEqual([]);
  });
});

test("while the store cannot be read nothing is a dead letter: the model catches up when it can", async () => {
  let down = true;
  const store: LakeOptions["store"] = (inner) =>
    overriding(inner, {
      get: async (key) => {
        if (down && key.startsWith("offload/")) throw new TributaryError("TRB-STORE-FAILED");
        return inner.get(key);
      },
    });
  await withLake({ store }, async (lake) => {
    const payload = payloadOf("late");
    await lake.context.store.put(keyOf(payload), payload);
    const lane = await lake.lane();
    await lane.land(batchOf(referring("late", payload), event("inline", payloadOf("inline"))));
    expect(await lake.rawPositions()).toHaveLength(2);
    down = false;
    expect(await names(lake)).toEqual(["inline inline", "late late"]);
    expect(await lake.deadLetters()).toEqual([]);
  });
});

test("a new model reads references from raw, also from a raw table that an older make has begun", async () => {
  await withLake({}, async (lake) => {
    const { store, duck, tableOptions } = lake.context;
    const { columns, ...spec } = rawSpec(THING);
    const old = columns.filter(({ name }) => !/^payload_(uri|size|sha256)$/.test(name));
    await DeltaTable.openOrCreate(store, rawRoot(THING), duck, tableOptions, { ...spec, columns: old });
    const payload = payloadOf("elsewhere");
    await store.put(keyOf(payload), payload);
    await (await lake.lane()).land(batchOf(event("first", payloadOf("1")), event("second", payloadOf("2"))));
    await lake.settled();
    // Its first file is made to lack the columns, as that of an older make does.
    const raw = (await DeltaTable.open(store, rawRoot(THING), duck, tableOptions))!;
    const [file] = raw.snapshot.files;
    const key = `${rawRoot(THING)}/${file!.path}`;
    await store.withLocal([key], ([path]) =>
      duck.with(async (connection) => {
        const kept = old.map(({ name }) => `"${name}"`).join(", ");
        await connection.run(`COPY (SELECT ${kept} FROM '${path}') TO '${path}.old' (FORMAT parquet)`);
        const [[bytes]] = (
          await connection.runAndReadAll(`SELECT content FROM read_blob('${path}.old')`)
        ).getRows() as [[{ bytes: Uint8Array }]];
        await store.put(key, bytes.bytes);
      }),
    );
    await (await lake.lane()).land(batchOf(referring("third", payload, { eventId: "e3" })));
    await lake.settled();
    const changed = THINGS_SQL.replace("payload.name as name", "payload.name || '!' as name");
    await lake.reopen({ models: { things: changed } });
    expect(await names(lake)).toEqual(["first 1!", "second 2!", "third elsewhere!"]);
    const now = (await DeltaTable.open(store, rawRoot(THING), lake.context.duck, tableOptions))!;
    const told = { columns: ["entity_id", "event_id", "payload_uri", "payload_size"] };
    const rows = await withScan(now, now.snapshot, told, (sql) => lake.query(`${sql} ORDER BY 1`));
    expect(rows).toEqual([
      ["first", null, null, null],
      ["second", null, null, null],
      ["third", "e3", keyOf(payload), BigInt(payload.length)],
    ]);
  });
});

test("what lands is kept for good before its commit, and no more than once; what cannot be kept does not land", async () => {
  const order: string[] = [];
  let failing = true;
  const store: LakeOptions["store"] = (inner) =>
    overriding(inner, {
      putIfAbsent: async (key, bytes) => {
        if (key.startsWith("kept/") && failing)
          throw new TributaryError("TRB-STORE-FAILED", "a test's fault");
        if (key.startsWith("kept/") || /^raw.*json$/.test(key)) order.push(key.split("/")[0]!);
        return inner.putIfAbsent(key, bytes);
      },
    });
  await withLake({ store }, async (lake) => {
    const payload = payloadOf("kept");
    await lake.context.store.put(keyOf(payload), payload);
    const lane = await lake.lane();
    order.length = 0;
    const batch = batchOf(referring("a", payload), referring("b", payload));
    await expect(lane.land(batch)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    expect(order).toEqual([]);
    failing = false;
    await lane.reopen();
    await lane.land(batch);
    await lane.land(batchOf(referring("c", payload)));
    expect(order).toEqual(["kept", "raw", "raw"]);
    const key = `kept/acme/${sha256(payload).toString("hex")}`;
    expect((await lake.context.store.stat(key))?.bytes).toBe(0);
  });
});

test("what is parked is kept for good before it is", async () => {
  const state = { down: true };
  const lake = await pipelineLake({ store: breakable(state) });
  try {
    const { store } = lake.context;
    const payload = payloadOf("parked");
    await store.put(keyOf(payload), payload);
    const reader = new MemoryReader("test");
    const { stop } = startPipeline(lake, reader);
    reader.append(0, encodeEvent(referring("a", payload)));
    const first = async (prefix: string): Promise<string | undefined> => {
      for await (const { key } of store.list(prefix)) return key;
      return undefined;
    };
    await until("it is parked", async () => (await first("parked/")) !== undefined);
    expect(await first("kept/")).toBe(`kept/acme/${sha256(payload).toString("hex")}`);
    state.down = false;
    await until("it has landed", async () => (await first("parked/")) === undefined && reader.caughtUp);
    await stop();
  } finally {
    await lake.close();
  }
});
