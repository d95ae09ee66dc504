import { create, type DescMessage, fromBinary } from "@bufbuild/protobuf";
import { TimestampSchema } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import * as contracts from "../../../services/contracts/encode-event.js";
import { startTestBus, type TestBus, testRegistry } from "../../../test/support/bus-server.js";
import { type ChangeEvent, changeEvent, encodeEvent, encodeRequest, withReference } from "./event.js";
import { Producer } from "./producer.js";

const full: ChangeEvent = {
  tenantId: "acme",
  entityType: "tracker.v1.Issue",
  entityId: "ä/1",
  operation: "updated",
  version: 2n ** 63n - 1n,
  occurredAt: new Date(-1),
  payload: Buffer.from([10, 1, 65]),
  compression: "zstd",
  attributes: { traceparent: "00-1", producer: "x" },
  eventId: "id",
};

describe("an event", () => {
  it("is encoded as the bus's own side does it", () => {
    const ours = contracts.encodeEvent({
      ...full,
      operation: 2,
      occurredAt: { seconds: -1n, nanos: 999_000_000 },
      payload: { value: full.payload! },
      compression: 2,
    });
    expect(Buffer.from(encodeEvent(full))).toEqual(ours);
    const other = {
      ...full,
      version: "7",
      occurredAt: { seconds: 3, nanos: 0 },
      operation: "deleted",
    } as const;
    const { payload: _, compression: __, ...deleted } = other;
    const deletion = contracts.encodeEvent({ ...deleted, operation: 3, occurredAt: { seconds: 3 } });
    expect(Buffer.from(encodeEvent(deleted))).toEqual(deletion);
    expect(Buffer.from(encodeRequest([encodeEvent(deleted)]))).toEqual(contracts.encodeRequest([deletion]));
  });

  it("carries a reference in place of its payload", () => {
    const reference = { uri: "offload/acme/00", typeUrl: "t/x", sizeBytes: 5, sha256: Buffer.alloc(32, 1) };
    const theirs = contracts.encodeEvent({
      tenantId: "acme",
      entityType: "a.B",
      entityId: "e",
      operation: 1,
      version: 1,
      reference,
    });
    const event = { ...full, entityType: "a.B", entityId: "e", operation: "created", version: 1 } as const;
    const {
      payload: _,
      occurredAt: __,
      compression: ___,
      attributes: ____,
      eventId: _____,
      ...plain
    } = event;
    expect(Buffer.from(withReference(encodeEvent(plain), reference))).toEqual(theirs);
  });

  it("is typed by a generated message, given as one or as its fields", () => {
    const { payload: _, compression: __, entityType: ___, ...fields } = full;
    const schema = TimestampSchema;
    const message = create(schema, { seconds: 5n });
    const [whole, init] = [message, { seconds: 5n }].map((payload) =>
      changeEvent(schema, { ...fields, payload }),
    );
    expect(whole).toEqual(init);
    expect(whole!.entityType).toBe("google.protobuf.Timestamp");
    expect(fromBinary(schema, whole!.payload!)).toEqual(message);
    expect(changeEvent(schema, { ...fields, operation: "deleted" }).payload).toBeUndefined();
    const wrong = { seconds: "no" as unknown as bigint };
    expect(() => changeEvent(schema as DescMessage, { ...fields, payload: wrong })).toThrow(
      expect.objectContaining({ code: "TRB-PRODUCER-EVENT", message: expect.stringContaining("payload: ") }),
    );
  });
});

describe("a real bus", () => {
  let bus: TestBus;
  let url: string;
  beforeAll(async () => {
    bus = await startTestBus();
    url = await bus.server.listen("127.0.0.1", 0);
  });
  afterAll(() => bus.close());

  it("takes what is sent, packed or not, and says what it refuses and why", async () => {
    const token = (await bus.bearer()).slice("Bearer ".length);
    const payload = testRegistry
      .codec("tracker.v1.Issue")
      .encode({ key: "PAY-1", summary: "Hello" })
      .finish();
    for (const gzip of [false, true]) {
      const producer = new Producer({ url, token, gzip });
      const { compression: _, ...event } = { ...full, payload };
      const events = Array.from({ length: 30 }, (_, i) => ({ ...event, entityId: `${i}`, version: i + 1 }));
      const receipts = await Promise.all(events.map((each) => producer.send(each)));
      expect(new Set(receipts.map(({ partition, position }) => `${partition}/${position}`)).size).toBe(30);
      await expect(producer.send({ ...event, entityType: "no.Such" })).rejects.toMatchObject({
        code: "TRB-EVENT-ENTITY-TYPE",
        refused: "event",
      });
      expect(await producer.close()).toEqual({ undelivered: [] });
    }
    const stranger = new Producer({ url, token: "no token" });
    await expect(stranger.send({ ...full })).rejects.toMatchObject({
      code: "TRB-AUTH-INVALID",
      refused: "request",
    });
    await stranger.close();
  });
});
