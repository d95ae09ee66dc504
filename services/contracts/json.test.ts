import { join } from "node:path";
import { fromBinary, toJson } from "@bufbuild/protobuf";
import fc from "fast-check";
import type protobuf from "protobufjs";
import { describe, expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { packageRoot } from "../base/paths.js";
import { Envelope } from "./envelope.js";
import { JsonEvents } from "./json.js";
import { GivenTwice, integerOf, parseJson } from "./json-text.js";
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

describe("numbers are exact or refused, since they decide which event wins", () => {
  const versioned = (version: string) => JSON.stringify({ ...good, version: "V" }).replace('"V"', version);
  test.each([
    ["9007199254740993", "9007199254740993"],
    ['"9007199254740993"', "9007199254740993"],
    ["9007199254740993.0", "9007199254740993"],
    ["9.007199254740993e15", "9007199254740993"],
    ['"9.007199254740993e15"', "9007199254740993"],
    ["123456789012345e4", "1234567890123450000"],
    ["9223372036854775807", "9223372036854775807"],
    ["0.0009223372036854775807e22", "9223372036854775807"],
    ["1e2", "100"],
    ['"1e2"', "100"],
    ["1.0", "1"],
    ['"7.00"', "7"],
    ["100e-2", "1"],
  ])("version %s is %s", (text, version) => {
    expect(readBack(versioned(text))).toMatchObject({ version });
  });
  test.each([
    ...[
      '"0x10"',
      '" 1"',
      '"1 "',
      '"\\n1"',
      '"0b1"',
      '"0o7"',
      '"+1"',
      '"01"',
      '"1_000"',
      '"1."',
      '".5e1"',
      '""',
      '"-"',
    ],
    ...[
      "9007199254740992.5",
      "1.0000000000000000001",
      '"1.5"',
      "15e-1",
      "9223372036854775808",
      "1e19",
      "1e999999999",
    ],
    ...[
      '"1e999999999"',
      '"1e-999999999"',
      "true",
      "[1]",
      '{"text":"1"}',
      "-9223372036854775809",
      '"Infinity"',
      '"١"',
    ],
  ])("version %s is refused", (text) => {
    expect(outcome(versioned(text))).toMatchObject({ code: "TRB-EVENT-VERSION", message: /^version: / });
  });

  test("half a character is refused wherever it stands", () => {
    const half = "\\ud800";
    for (const fields of [
      `"b":"${half}"`,
      `"texts":{"a":"${half}"}`,
      `"texts":{"${half}":"a"}`,
      `"json":"${half}"`,
    ]) {
      expect(convert(fields), fields).toMatchObject({ code: "TRB-EVENT-PAYLOAD-DECODE" });
    }
    for (const json of [`{"${half}":1}`, `[["${half}"]]`, `{"a":{"${half}":{}}}`]) {
      expect(convert(`"json":${json}`), json).toMatchObject({ code: "TRB-EVENT-PAYLOAD-DECODE" });
    }
    const attributes = JSON.stringify({ ...good, attributes: { k: "HALF" } }).replace("HALF", half);
    expect(outcome(attributes)).toMatchObject({ code: "TRB-EVENT-MALFORMED", message: /^attributes/ });
  });

  const numbers = inlineProtos({
    "n.proto": `syntax = "proto3"; package n;
      import "google/protobuf/wrappers.proto"; import "google/protobuf/struct.proto"; import "google/protobuf/any.proto";
      message N { sint64 one = 1; repeated fixed64 many = 2; map<int64, uint64> by = 3; N inner = 4; int32 small = 5;
        double real = 6; repeated float reals = 7; google.protobuf.Int64Value wrapped = 8; google.protobuf.Value json = 9;
        oneof pick { uint64 a = 10; string b = 11; } google.protobuf.Any any = 12; map<string, N> inners = 13;
        bool flag = 14; bytes raw = 15; K kind = 16; map<string, string> texts = 17; repeated google.protobuf.UInt64Value wraps = 18; }
      enum K { K_NONE = 0; }`,
  });
  const reader = new JsonEvents(numbers);
  const event = numbers.types.getMessage("tributary.v1.ChangeEvent")!;
  const convert = (fields: string) =>
    reader.convertLine(
      Buffer.from(
        `{"tenantId":"a","entityType":"n.N","entityId":"i","operation":1,"version":1,"payload":{"@type":"x/n.N",${fields}}}`,
      ),
    );
  const payloadOf = (fields: string): unknown => {
    const result = convert(fields);
    if (!Buffer.isBuffer(result)) throw new Error(result.message);
    const json = toJson(event, fromBinary(event, result), { registry: numbers.types }) as {
      payload: Record<string, unknown>;
    };
    const { "@type": _, ...payload } = json.payload;
    return payload;
  };
  test.each([
    ['"one":-9007199254740993', { one: "-9007199254740993" }],
    ['"many":[18446744073709551615,"1e1",0]', { many: ["18446744073709551615", "10", "0"] }],
    [
      '"by":{"-9223372036854775808":9007199254740993.0}',
      { by: { "-9223372036854775808": "9007199254740993" } },
    ],
    ['"inner":{"inner":{"one":"1.0"}}', { inner: { inner: { one: "1" } } }],
    ['"inners":{"a":{"one":9007199254740993},"b":{}}', { inners: { a: { one: "9007199254740993" }, b: {} } }],
    ['"small":"1e2"', { small: 100 }],
    [
      '"real":9007199254740992.5,"reals":["1e2",18446744073709551616]',
      { real: 9007199254740992, reals: [100, 18446744073709552000] },
    ],
    ['"real":"NaN"', { real: "NaN" }],
    ['"wrapped":9007199254740993', { wrapped: "9007199254740993" }],
    ['"wraps":["9007199254740993.0"]', { wraps: ["9007199254740993"] }],
    [
      '"json":{"a":[12345678901234567890,{"b":9007199254740992.5}]}',
      { json: { a: [12345678901234567000, { b: 9007199254740992 }] } },
    ],
    ['"a":"18446744073709551615"', { a: "18446744073709551615" }],
    [
      '"any":{"@type":"x/n.N","one":9007199254740993}',
      { any: { "@type": "type.googleapis.com/n.N", one: "9007199254740993" } },
    ],
    [
      '"any":{"@type":"x/google.protobuf.Int64Value","value":9007199254740993}',
      { any: { "@type": "type.googleapis.com/google.protobuf.Int64Value", value: "9007199254740993" } },
    ],
  ])("%s", (fields, expected) => {
    const plainly = JSON.stringify(payloadOf(fields)).replaceAll('"x/', '"type.googleapis.com/');
    expect(JSON.parse(plainly)).toEqual(expected);
  });
  test.each([
    ['"one":"0x10"', "one"],
    ['"many":[1," 1"]', "many"],
    ['"by":{"0x1":1}', "by"],
    ['"by":{" 1":1}', "by"],
    ['"by":{"1":"0x1"}', "by"],
    ['"inner":{"one":"0b1"}', "inner"],
    ['"inners":{"a":{"one":" 1"}}', "inners"],
    ['"small":"0x1"', "small"],
    ['"small":9007199254740992.5', "small"],
    ['"real":"0x1"', "real"],
    ['"reals":[" 1"]', "reals"],
    ['"wrapped":"0x1"', "wrapped"],
    ['"any":{"@type":"x/n.N","one":"0x1"}', "any"],
    // What is no number of a field is nothing else either.
    ...["flag", "raw", "kind", "b", "texts", "inner", "inners", "many", "any"].map((name) => [
      `"${name}":9007199254740992.5`,
      name,
    ]),
  ])("%s is refused", (fields, name) => {
    expect(convert(fields!)).toEqual({
      code: "TRB-EVENT-PAYLOAD-DECODE",
      message: expect.stringMatching(new RegExp(`^payload\\.${name}: expected `)) as string,
    });
  });
});

describe("a key given twice", () => {
  const text = JSON.stringify(good);
  const twice = (key: string, value: string) => text.replace("{", `{"${key}":${value},`);
  test.each([
    [twice("tenantId", '"other"'), "tenantId: given twice"],
    [twice("tenantId", '"acme"'), "tenantId: given twice"],
    [twice("version", "8"), "version: given twice"],
    [twice("version", "9007199254740993"), "version: given twice"],
    [twice("\\u0074enantId", '"other"'), "tenantId: given twice"],
    [twice("payload", "{}"), "payload: given twice"],
    [twice("entityType", '"x"'), "entityType: given twice"],
    [text.replace('"path"', '"path":"b","path"'), "payload.path: given twice"],
    [text.replace('"@type"', '"@type":"x","@type"'), "payload.@type: given twice"],
    [twice("attributes", '{"a":"1","b":"2","a":"1"}'), "attributes.a: given twice"],
    [twice("tenant_id", '"acme"'), "tenant_id: given under both of its names"],
    [
      text.replace('"linesAdded"', '"lines_added":"1","linesAdded"'),
      "payload.lines_added: given under both of its names",
    ],
  ])("%# is refused by its name", (line, message) => {
    const result = outcome(line);
    expect(result.message).toBe(message);
    expect(result.code).toMatch(/^TRB-EVENT-(MALFORMED|PAYLOAD-DECODE)$/);
  });
  test("is not seen where there is none: strings with colons, quotes and braces, equal keys in siblings", () => {
    const id = 'a":"b","tenantId":{[\\"';
    const event = { ...good, entityId: id, attributes: { "k:{": '":,', '"': "\\" } };
    expect(readBack(JSON.stringify(event))).toMatchObject({ entityId: id, attributes: event.attributes });
    expect(readBack(JSON.stringify({ ...good, attributes: { path: "x", tenantId: "y" } }))).toBeDefined();
  });
  test("whatever the values, a key given twice is found and no other", () => {
    fc.assert(
      fc.property(fc.jsonValue(), fc.dictionary(fc.string(), fc.jsonValue()), (value, object) => {
        const whole = JSON.stringify({ value, object });
        const printed = JSON.stringify(parseJson(Buffer.from(whole)), (_, each: unknown) =>
          typeof each === "bigint" ? Number(each) : each,
        );
        expect(printed).toBe(whole);
        for (const key of Object.keys(object)) {
          const again = whole.replace('"object":{', () => `"object":{${JSON.stringify(key)}:1,`);
          expect(parseJson(Buffer.from(again))).toEqual(new GivenTwice(["object", key]));
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe("text made to be slow", () => {
  /** Milliseconds that reading `text` takes, and what comes of it. */
  const timed = (text: string): [number, string | undefined] => {
    const started = performance.now();
    const { message } = outcome(text);
    return [performance.now() - started, message];
  };
  const many = 100_000;
  // Each took a quarter of a minute or gigabytes while its cost grew with the square of its length.
  test.each([
    ["zeros before the last digit", `"0.${"0".repeat(many)}1"`, /^version: /],
    ["the same as a number", `1.${"0".repeat(many)}1`, /^version: /],
  ])("%s of a version", (_, version, message) => {
    const [ms, told] = timed(JSON.stringify(good).replace('"version":"7"', `"version":${version}`));
    expect(told).toMatch(message);
    expect(ms).toBeLessThan(2_000);
  });

  test("one key again and again, deep inside", () => {
    const depth = 1_000;
    const inner = `{"b":0${',"b":0'.repeat(many)}}`;
    const [ms, told] = timed('{"a":'.repeat(depth) + inner + "}".repeat(depth));
    expect(told).toBe("a.a.a.a.a.a.a.….b: given twice");
    expect(ms).toBeLessThan(2_000);
  });

  test("integers are exact, however they are written", () => {
    const zeros = "0".repeat(50);
    for (const [text, whole] of [
      [`1${"0".repeat(18)}`, 10n ** 18n],
      [`9007199254740993.${zeros}`, 9007199254740993n],
      ["12.50e1", 125n],
      ["-120e-1", -12n],
      [`1${zeros}e-50`, 1n],
      ["0.0e99", 0n],
      ["-0", 0n],
      ["12.5", undefined],
      ["125e-1", undefined],
      ["1e60", undefined],
      ["1e99999999999999999999", undefined],
      ["01", undefined],
    ] as const) {
      expect(integerOf(text), text).toBe(whole);
    }
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
