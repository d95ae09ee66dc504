import { join } from "node:path";
import fc from "fast-check";
import type protobuf from "protobufjs";
import { describe, expect, test } from "vitest";
import { packageRoot } from "../base/paths.js";
import { type EventInit, encodeEvent, encodeRequest } from "./encode-event.js";
import { Envelope, frames, isTenantId } from "./envelope.js";
import { ProtoRegistry } from "./registry.js";
import { isUtf8 } from "./wire.js";

const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
const ChangeEvent = registry.codec("tributary.v1.ChangeEvent");
const PublishRequest = registry.codec("tributary.v1.PublishRequest");

const good: EventInit = {
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId: "src/main.ts",
  operation: 2,
  version: 7,
  payload: { value: new Uint8Array([10, 1, 97]) },
};
const envelope = new Envelope();
const codeOf = (event: EventInit | Uint8Array) => {
  const bytes = event instanceof Uint8Array ? Buffer.from(event) : encodeEvent(event);
  return envelope.read(bytes, 0, bytes.length);
};
const { payload: _, ...withoutPayload } = good;
const reference = { uri: "u", typeUrl: "t", sizeBytes: 1, sha256: new Uint8Array(32) };
const deleted: EventInit = { ...withoutPayload, operation: 3 };
const append = (event: EventInit, ...bytes: number[]) =>
  Buffer.concat([encodeEvent(event), Buffer.from(bytes)]);

const tenantArb = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/);
const textArb = fc.string({ unit: "binary", maxLength: 40 }).map((text) => Buffer.from(text).toString());
const eventArb: fc.Arbitrary<EventInit> = fc
  .record(
    {
      tenantId: tenantArb,
      entityType: fc.constantFrom("scm.v1.File", "a", "tracker.v1.Issue", "ü.x"),
      entityId: textArb.filter((text) => text !== ""),
      operation: fc.integer({ min: 1, max: 3 }),
      version: fc.bigInt({ min: 1n, max: 2n ** 63n - 1n }),
      occurredAt: fc.record({
        seconds: fc.integer({ min: -62_135_596_800, max: 253_402_300_799 }),
        nanos: fc.integer({ min: 0, max: 999_999_999 }),
      }),
      payload: fc.record({ value: fc.uint8Array({ maxLength: 60 }) }),
      compression: fc.integer({ min: 0, max: 2 }),
      attributes: fc.dictionary(textArb, textArb, { maxKeys: 20 }),
      eventId: textArb,
    },
    { requiredKeys: ["tenantId", "entityType", "entityId", "operation", "version", "payload"] },
  )
  .map((event) => {
    if (event.operation !== 3) return event;
    const { payload: _dropped, ...rest } = event;
    return rest;
  });

/** The cursor's view of what it read, in the shape protobufjs decodes to. */
const view = () => ({
  tenant_id: envelope.tenantId(),
  entity_type: envelope.entityType(),
  entity_id: envelope.entityId(),
  operation: envelope.operation,
  version: envelope.version().toString(),
  occurred_at: Number.isNaN(envelope.occurredSeconds)
    ? null
    : { seconds: String(envelope.occurredSeconds), nanos: envelope.occurredNanos },
  payload:
    envelope.payloadStart < 0
      ? null
      : { type_url: envelope.typeUrl(), value: envelope.payload()!.toString("base64") },
  payload_reference:
    envelope.referenceStart < 0
      ? null
      : registry
          .codec("tributary.v1.PayloadReference")
          .toObject(
            registry
              .codec("tributary.v1.PayloadReference")
              .decode(envelope.bytes.subarray(envelope.referenceStart, envelope.referenceEnd)),
            plainly,
          ),
  payload_compression: envelope.compression,
  attributes: Object.fromEntries(envelope.attributeMap()),
  event_id: envelope.eventId(),
});
const plainly: protobuf.IConversionOptions = { longs: String, bytes: String, defaults: true, objects: true };
const decoded = (bytes: Uint8Array) => {
  const { content: _content, ...plain } = ChangeEvent.toObject(ChangeEvent.decode(bytes), plainly);
  return { payload: null, payload_reference: null, ...plain };
};

test("whatever a producer may send reads as protobufjs decodes it, at any offset of a buffer", () => {
  fc.assert(
    fc.property(eventArb, fc.nat(20), (event, offset) => {
      const bytes = encodeEvent(event);
      const buffer = Buffer.concat([Buffer.alloc(offset, 0xff), bytes, Buffer.alloc(3, 0xff)]);
      expect(envelope.read(buffer, offset, offset + bytes.length)).toBeUndefined();
      expect(view()).toEqual(decoded(bytes));
    }),
    { numRuns: 400 },
  );
});

test("damaged bytes never throw nor reach outside their slice; what both readers take means the same", () => {
  const mutation = fc.record({
    at: fc.nat(400),
    kind: fc.constantFrom("set", "set", "set", "insert", "cut", "repeat", "field"),
    byte: fc.integer({ min: 0, max: 255 }),
  });
  let agreed = 0;
  fc.assert(
    fc.property(eventArb, fc.array(mutation, { minLength: 1, maxLength: 2 }), (event, mutations) => {
      let bytes = encodeEvent(event);
      for (const { at, kind, byte } of mutations) {
        const i = at % (bytes.length + 1);
        const head = bytes.subarray(0, i);
        if (kind === "set") bytes = Buffer.concat([head, Buffer.from([byte]), bytes.subarray(i + 1)]);
        if (kind === "insert") bytes = Buffer.concat([head, Buffer.from([byte]), bytes.subarray(i)]);
        if (kind === "cut") bytes = Buffer.from(head);
        if (kind === "field") bytes = Buffer.concat([bytes, Buffer.from([(at % 15) * 8 + 8, byte & 0x7f])]);
        if (kind === "repeat") bytes = Buffer.concat([bytes, bytes.subarray(i)]);
      }
      // What follows the slice is tempting: it would complete a truncated length.
      const buffer = Buffer.concat([bytes, Buffer.alloc(300, 1)]);
      if (envelope.read(buffer, 0, bytes.length) !== undefined) return;
      for (const offset of [envelope.tenantEnd, envelope.typeEnd, envelope.idEnd, envelope.payloadEnd]) {
        expect(offset).toBeLessThanOrEqual(bytes.length);
      }
      expect(view()).toEqual(decoded(bytes));
      agreed++;
    }),
    { numRuns: 3000 },
  );
  expect(agreed).toBeGreaterThan(20);
});

test("random bytes never throw", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      codeOf(bytes);
      frames(bytes);
    }),
    { numRuns: 3000 },
  );
});

describe("each rule of the envelope has its code", () => {
  const long = "x".repeat(1025);
  test.each<[string, EventInit | Uint8Array, string | undefined]>([
    ["a good event", good, undefined],
    ["a delete without content", deleted, undefined],
    ["an empty payload", { ...good, payload: { value: new Uint8Array() } }, undefined],
    ["no tenant", { ...good, tenantId: "" }, "TRB-EVENT-TENANT"],
    ["tenant ..", { ...good, tenantId: ".." }, "TRB-EVENT-TENANT"],
    ["tenant ~shared", { ...good, tenantId: "~shared" }, "TRB-EVENT-TENANT"],
    ["tenant a/b", { ...good, tenantId: "a/b" }, "TRB-EVENT-TENANT"],
    ["tenant with a newline", { ...good, tenantId: "a\n" }, "TRB-EVENT-TENANT"],
    ["tenant of 128 bytes", { ...good, tenantId: "a".repeat(128) }, undefined],
    ["tenant of 129 bytes", { ...good, tenantId: "a".repeat(129) }, "TRB-EVENT-TENANT"],
    ["tenant beyond ASCII", { ...good, tenantId: "aé" }, "TRB-EVENT-TENANT"],
    ["no entity type", { ...good, entityType: "" }, "TRB-EVENT-ENTITY-TYPE"],
    ["no entity id", { ...good, entityId: "" }, "TRB-EVENT-ENTITY-ID"],
    ["entity id of 1025 bytes", { ...good, entityId: long }, "TRB-EVENT-ENTITY-ID"],
    ["entity id of 1024 bytes", { ...good, entityId: long.slice(1) }, undefined],
    ["entity id that is not UTF-8", append(good, 26, 2, 0xc0, 0x80), "TRB-EVENT-ENTITY-ID"],
    ["no operation", { ...good, operation: 0 }, "TRB-EVENT-OPERATION"],
    ["operation 4", { ...good, operation: 4 }, "TRB-EVENT-OPERATION"],
    ["operation -1", { ...good, operation: -1 }, "TRB-EVENT-OPERATION"],
    ["version 0", { ...good, version: 0 }, "TRB-EVENT-VERSION"],
    ["version -1", { ...good, version: -1 }, "TRB-EVENT-VERSION"],
    ["version -2^63", { ...good, version: -(2n ** 63n) }, "TRB-EVENT-VERSION"],
    ["version 2^32", { ...good, version: 2n ** 32n }, undefined],
    ["occurred in year 0", { ...good, occurredAt: { seconds: -62_135_596_801 } }, "TRB-EVENT-TIME"],
    ["occurred in year 10000", { ...good, occurredAt: { seconds: 253_402_300_800 } }, "TRB-EVENT-TIME"],
    ["occurred at 2^63-1", { ...good, occurredAt: { seconds: 2n ** 63n - 1n } }, "TRB-EVENT-TIME"],
    ["nanos of a whole second", { ...good, occurredAt: { seconds: 1, nanos: 1e9 } }, "TRB-EVENT-TIME"],
    ["negative nanos", { ...good, occurredAt: { seconds: 1, nanos: -1 } }, "TRB-EVENT-TIME"],
    ["created without content", { ...withoutPayload, operation: 1 }, "TRB-EVENT-CONTENT"],
    ["deleted with a payload", { ...good, operation: 3 }, "TRB-EVENT-CONTENT"],
    ["payload and reference at once", { ...good, reference }, "TRB-EVENT-CONTENT"],
    ["compression 3", { ...good, compression: 3 }, "TRB-EVENT-COMPRESSION"],
    [
      "a payload of another type",
      { ...good, payload: { typeUrl: "x/scm.v1.Commit", value: Buffer.alloc(0) } },
      "TRB-EVENT-PAYLOAD-TYPE",
    ],
    [
      "a type URL without a slash",
      { ...good, payload: { typeUrl: "scm.v1.File", value: Buffer.alloc(0) } },
      "TRB-EVENT-PAYLOAD-TYPE",
    ],
    [
      "a type URL that only ends alike",
      { ...good, payload: { typeUrl: "x/yscm.v1.File", value: Buffer.alloc(0) } },
      "TRB-EVENT-PAYLOAD-TYPE",
    ],
    [
      "a type URL with nothing before the slash",
      { ...good, payload: { typeUrl: "/scm.v1.File", value: Buffer.alloc(0) } },
      undefined,
    ],
    ["an unknown field", append(good, 0xa2, 0x06, 1, 0), undefined],
    ["an unknown group", append(good, 0xa3, 0x06, 0xa4, 0x06), "TRB-EVENT-MALFORMED"],
    ["field number 0", append(good, 0x02, 0), "TRB-EVENT-MALFORMED"],
    ["a known field of another wire type", append(good, 0x08, 1), "TRB-EVENT-MALFORMED"],
    ["a second payload", append(good, 58, 0), "TRB-EVENT-MALFORMED"],
    ["a second occurred_at", append({ ...good, occurredAt: { seconds: 1 } }, 50, 0), "TRB-EVENT-MALFORMED"],
    ["a second payload_reference", append({ ...withoutPayload, reference }, 66, 0), "TRB-EVENT-MALFORMED"],
    ["a varint of eleven bytes", append(good, 40, ...Array<number>(10).fill(0x81), 0), "TRB-EVENT-MALFORMED"],
    ["a varint over 64 bits", append(good, 40, ...Array<number>(9).fill(0x81), 2), "TRB-EVENT-MALFORMED"],
    ["a length beyond the end", append(good, 90, 2, 65), "TRB-EVENT-MALFORMED"],
    ["an event id that is not UTF-8", append(good, 90, 1, 0xff), "TRB-EVENT-MALFORMED"],
    ["an attribute that is not UTF-8", append(good, 82, 3, 10, 1, 0xff), "TRB-EVENT-MALFORMED"],
    ["an attribute without key and value", append(good, 82, 0), undefined],
    ["no bytes at all", new Uint8Array(), "TRB-EVENT-TENANT"],
  ])("%s", (_name, event, code) => {
    expect(codeOf(event)).toBe(code);
  });

  test.each([2n ** 53n + 1n, 2n ** 63n - 1n, 1n, 2n ** 31n, 2n ** 32n - 1n])(
    "version %s is read exactly",
    (version) => {
      expect(codeOf({ ...good, version })).toBeUndefined();
      expect(envelope.version()).toBe(version);
    },
  );

  test("of a scalar given twice the last stands, and nothing of the event before is left", () => {
    expect(
      codeOf({ ...good, attributes: { a: "b" }, eventId: "e", occurredAt: { seconds: 5, nanos: 1500 } }),
    ).toBeUndefined();
    expect(envelope.occurredMicros).toBe(5_000_001);
    expect(codeOf(append(deleted, 10, 1, 122))).toBeUndefined();
    expect(view()).toMatchObject({
      tenant_id: "z",
      payload: null,
      occurred_at: null,
      attributes: {},
      event_id: "",
    });
    expect(envelope.occurredMicros).toBeNaN();
  });

  test("attributes are few, and a flood of them is told before it is taken in", () => {
    const many = (count: number) =>
      Object.fromEntries(Array.from({ length: count }, (_, i) => [`k${i}`, "v"]));
    expect(codeOf({ ...good, attributes: many(256) })).toBeUndefined();
    expect(envelope.attributeMap().size).toBe(256);
    expect(codeOf({ ...good, attributes: many(257) })).toBe("TRB-EVENT-ATTRIBUTES");
    const kept = envelope.attributes.byteLength;
    const flood = Buffer.concat([encodeEvent(good), Buffer.alloc(1_000_000, Buffer.from([0x52, 0]))]);
    expect(envelope.read(flood, 0, flood.length)).toBe("TRB-EVENT-ATTRIBUTES");
    expect(envelope.attributes.byteLength).toBe(kept);
  });

  test("times before 1970 round down", () => {
    expect(codeOf({ ...good, occurredAt: { seconds: -1, nanos: 999_999_999 } })).toBeUndefined();
    expect(envelope.occurredMicros).toBe(-1);
  });
});

test("a request splits into exactly its events; a damaged one is not split at all", () => {
  fc.assert(
    fc.property(fc.array(eventArb, { maxLength: 12 }), (events) => {
      const encoded = events.map(encodeEvent);
      const body = encodeRequest(encoded);
      expect(PublishRequest.decode(body)).toMatchObject({ events: events.map(() => ({})) });
      const found = frames(body)!;
      expect(found.count).toBe(events.length);
      encoded.forEach((event, i) => {
        expect(event.equals(body.subarray(found.starts[i], found.ends[i]))).toBe(true);
      });
      if (body.length > 0) expect(frames(body.subarray(0, body.length - 1))).toBeUndefined();
    }),
    { numRuns: 60 },
  );
});

test("the UTF-8 check agrees with the platform's decoder", () => {
  const strict = new TextDecoder("utf-8", { fatal: true });
  const accepts = (bytes: Uint8Array): boolean => {
    try {
      strict.decode(bytes);
      return true;
    } catch {
      return false;
    }
  };
  const lead = fc.constantFrom(
    0x41,
    0x7f,
    0x80,
    0xbf,
    0xc0,
    0xc1,
    0xc2,
    0xdf,
    0xe0,
    0xed,
    0xef,
    0xf0,
    0xf4,
    0xf5,
    0xff,
    0x8f,
    0x90,
    0x9f,
    0xa0,
  );
  const bytesArb = fc.oneof(
    fc.array(lead, { maxLength: 9 }),
    fc.string({ unit: "binary" }).map((text) => [...Buffer.from(text)]),
  );
  fc.assert(
    fc.property(bytesArb, (list) => {
      const bytes = Uint8Array.from(list);
      expect(isUtf8(bytes, 0, bytes.length)).toBe(accepts(bytes));
    }),
    { numRuns: 20_000 },
  );
});

test("tenant ids follow one rule", () => {
  const rule = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$/;
  fc.assert(
    fc.property(fc.oneof(tenantArb, fc.string({ maxLength: 5 })), (id) => {
      expect(isTenantId(id)).toBe(rule.test(id));
    }),
  );
});

test("takes version 0 where that may come of a bootstrap, and nothing else more", () => {
  const read = (version: bigint, least?: 0 | 1) => {
    const event = encodeEvent({ ...good, version });
    return new Envelope().read(event, 0, event.length, least);
  };
  expect([read(0n, 0), read(1n, 0), read(2n ** 32n, 0)]).toEqual([undefined, undefined, undefined]);
  expect([read(0n), read(0n, 1), read(-1n, 0)]).toEqual(Array(3).fill("TRB-EVENT-VERSION"));
});
