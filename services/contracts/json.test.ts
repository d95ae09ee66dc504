import { join } from "node:path";
import { fromBinary, toJson } from "@bufbuild/protobuf";
import fc from "fast-check";
import type protobuf from "protobufjs";
import { describe, expect, test } from "vitest";
import { packageRoot } from "../base/paths.js";
import { Envelope } from "./envelope.js";
import { JsonEvents } from "./json.js";
import { ProtoRegistry } from "./registry.js";

const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
const events = new JsonEvents(registry);
const schema = registry.types.getMessage("tributary.v1.ChangeEvent")!;
const Issue = registry.codec("tracker.v1.Issue");

const payload = { "@type": "type.googleapis.com/scm.v1.File", path: "a", linesAdded: "37" };
const good = {
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId: "a",
  operation: "OPERATION_UPDATED",
  version: "7",
  occurredAt: "2024-02-29T12:00:00.5Z",
  payload,
};

/** The outcome for one event given as JSON text: "ok" or its code, and the message. */
function outcome(text: string): { code: string; message: string } {
  const result = events.convertLine(Buffer.from(text));
  if (!Buffer.isBuffer(result)) return result;
  const envelope = new Envelope();
  return { code: envelope.read(result, 0, result.length) ?? "ok", message: "" };
}

/** The event as read back from its bytes, printed as JSON by the library. */
function readBack(text: string): unknown {
  const result = events.convertLine(Buffer.from(text));
  if (!Buffer.isBuffer(result)) throw new Error(result.message);
  return toJson(schema, fromBinary(schema, result), { registry: registry.types });
}

test("an event in JSON becomes the bytes of the same event", () => {
  expect(readBack(JSON.stringify(good))).toEqual({ ...good, occurredAt: "2024-02-29T12:00:00.500Z" });
  const snake = JSON.stringify(good).replace("tenantId", "tenant_id").replace("linesAdded", "lines_added");
  expect(readBack(snake)).toEqual(readBack(JSON.stringify(good)));
});

test("versions and 64-bit fields are exact as strings and as numbers", () => {
  fc.assert(
    fc.property(
      fc.bigInt({ min: 1n, max: 2n ** 63n - 1n }),
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
      (version, added) => {
        const texts = ["", '"'].map((quote) =>
          JSON.stringify({ ...good, version: "V", payload: { ...payload, linesAdded: "L" } })
            .replace('"V"', `${quote}${version}${quote}`)
            .replace('"L"', `${quote}${added}${quote}`),
        );
        for (const text of texts) {
          expect(readBack(text)).toMatchObject({
            version: String(version),
            payload: added === 0n ? {} : { linesAdded: String(added) },
          });
        }
      },
    ),
    { numRuns: 100 },
  );
});

test("a large integer in a double field is a double, and in a string field it is refused", () => {
  const issue = (fields: string) =>
    `{"tenantId":"a","entityType":"tracker.v1.Issue","entityId":"i","operation":1,"version":1,"payload":{"@type":"x/tracker.v1.Issue",${fields}}}`;
  expect(readBack(issue('"storyPoints":12345678901234567890'))).toMatchObject({
    payload: { storyPoints: 12345678901234567000 },
  });
  expect(outcome(issue('"key":12345678901234567890'))).toEqual({
    code: "TRB-EVENT-PAYLOAD-DECODE",
    message: "payload.key: expected string",
  });
});

describe("what is wrong with one event is told by code, naming the field and no value", () => {
  const secret = "s3cret-value";
  const without = (key: keyof typeof good) => {
    const { [key]: _, ...rest } = good;
    return rest;
  };
  test.each<[string, unknown, string, RegExp]>([
    ["no object", [], "TRB-EVENT-MALFORMED", /JSON object/],
    ["an unknown field", { ...good, tenant: secret }, "TRB-EVENT-MALFORMED", /"tenant" is not known/],
    [
      "an unknown payload field",
      { ...good, payload: { ...payload, nope: secret } },
      "TRB-EVENT-PAYLOAD-DECODE",
      /^payload: field "nope" is not known/,
    ],
    [
      "a payload field of another type",
      { ...good, payload: { ...payload, changeCount: secret } },
      "TRB-EVENT-PAYLOAD-DECODE",
      /^payload\.change_count: expected int32$/,
    ],
    [
      "a payload time that is none",
      { ...good, payload: { ...payload, createdAt: secret } },
      "TRB-EVENT-PAYLOAD-DECODE",
      /^payload\.created_at: expected google.protobuf.Timestamp$/,
    ],
    ["a number as tenant", { ...good, tenantId: 5 }, "TRB-EVENT-TENANT", /tenant_id/],
    ["no tenant", without("tenantId"), "TRB-EVENT-TENANT", /^$/],
    ["an unknown operation", { ...good, operation: secret }, "TRB-EVENT-OPERATION", /operation/],
    ["an unknown operation number", { ...good, operation: 9 }, "TRB-EVENT-OPERATION", /^$/],
    ["a version with a fraction", { ...good, version: 1.5 }, "TRB-EVENT-VERSION", /version/],
    ["a version of words", { ...good, version: secret }, "TRB-EVENT-VERSION", /version/],
    ["version 0", { ...good, version: 0 }, "TRB-EVENT-VERSION", /^$/],
    ["version 2^63", { ...good, version: "9223372036854775808" }, "TRB-EVENT-VERSION", /version/],
    ["a time that is none", { ...good, occurredAt: secret }, "TRB-EVENT-TIME", /occurred_at/],
    ["February 30th", { ...good, occurredAt: "2024-02-30T00:00:00+25:00" }, "TRB-EVENT-TIME", /occurred_at/],
    ["an unknown entity type", { ...good, entityType: secret }, "TRB-EVENT-ENTITY-TYPE", /entity_type/],
    ["no entity type", without("entityType"), "TRB-EVENT-ENTITY-TYPE", /entity_type/],
    [
      "@type of another message",
      { ...good, payload: { "@type": "x/scm.v1.Commit" } },
      "TRB-EVENT-PAYLOAD-TYPE",
      /@type/,
    ],
    [
      "@type that nobody knows",
      { ...good, payload: { "@type": `x/${secret}` } },
      "TRB-EVENT-PAYLOAD-TYPE",
      /@type/,
    ],
    ["no @type", { ...good, payload: {} }, "TRB-EVENT-PAYLOAD-TYPE", /@type/],
    ["a payload that is no object", { ...good, payload: secret }, "TRB-EVENT-PAYLOAD-TYPE", /@type/],
    ["packed JSON", { ...good, payloadCompression: "COMPRESSION_GZIP" }, "TRB-EVENT-COMPRESSION", /none/],
    ["payload and reference", { ...good, payloadReference: { uri: secret } }, "TRB-EVENT-CONTENT", /content/],
    ["no payload", without("payload"), "TRB-EVENT-CONTENT", /^$/],
    ["one field under two names", { ...good, tenant_id: secret }, "TRB-EVENT-MALFORMED", /both/],
    [
      "attributes that are no object",
      { ...good, attributes: secret },
      "TRB-EVENT-MALFORMED",
      /^attributes: expected/,
    ],
    ["half a character", { ...good, entityId: "\ud800" }, "TRB-EVENT-ENTITY-ID", /entity_id/],
    ["a null payload of a delete", { ...good, operation: 3, payload: null }, "ok", /^$/],
  ])("%s", (_name, event, code, message) => {
    const result = outcome(JSON.stringify(event));
    expect(result.code).toBe(code);
    expect(result.message).toMatch(message);
    expect(result.message).not.toContain(secret);
  });

  test("a line that is no JSON, or no UTF-8", () => {
    expect(outcome('{"tenantId":').code).toBe("TRB-EVENT-MALFORMED");
    expect(events.convertLine(Buffer.from([0x22, 0xff, 0x22]))).toMatchObject({
      code: "TRB-EVENT-MALFORMED",
    });
    expect(outcome("[".repeat(100_000)).code).toBe("TRB-EVENT-MALFORMED");
    expect(outcome(`1234567890123456${"[".repeat(100_000)}`).code).toBe("TRB-EVENT-MALFORMED");
  });

  test("names that objects inherit are fields like any other", () => {
    expect(outcome('{"__proto__":{"tenantId":"x"}}').code).toBe("TRB-EVENT-MALFORMED");
    expect(outcome('{"constructor":1,"version":1234567890123456789}').code).toBe("TRB-EVENT-MALFORMED");
  });
});

test("JSON and binary of one message agree, field by field", () => {
  const text = fc.string({ maxLength: 10 });
  const issue = fc.record(
    {
      key: text,
      labels: fc.array(text),
      originalEstimateSeconds: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String),
      storyPoints: fc.double({ noNaN: true, noDefaultInfinity: true }),
      customFields: fc.dictionary(
        text.filter((key) => key !== "__proto__"),
        text,
      ),
      commentCount: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
      priority: fc.constantFrom("PRIORITY_LOW", "PRIORITY_HIGHEST"),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(issue, (fields) => {
      const event = {
        tenantId: "a",
        entityType: "tracker.v1.Issue",
        entityId: "i",
        operation: 1,
        version: 1,
        payload: { "@type": "x/tracker.v1.Issue", ...fields },
      };
      const bytes = events.convert(event) as Buffer;
      const envelope = new Envelope();
      expect(envelope.read(bytes, 0, bytes.length)).toBeUndefined();
      const decoded = Issue.toObject(Issue.decode(envelope.payload()!), plainly);
      expect(decoded).toMatchObject({
        key: fields.key ?? "",
        labels: fields.labels ?? [],
        custom_fields: fields.customFields ?? {},
        comment_count: fields.commentCount ?? 0,
        priority: fields.priority ?? "PRIORITY_UNSPECIFIED",
        ...(fields.originalEstimateSeconds === undefined
          ? {}
          : { original_estimate_seconds: fields.originalEstimateSeconds }),
        ...(fields.storyPoints === undefined ? {} : { story_points: fields.storyPoints }),
      });
    }),
    { numRuns: 200 },
  );
});
const plainly: protobuf.IConversionOptions = { longs: String, enums: String, defaults: true };
