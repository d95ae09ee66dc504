import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { elements, type Found, lines } from "./json-body.js";

const texts = (body: Buffer, found: Iterable<Found>): string[] =>
  [...found].flatMap((each) => (each ? [body.toString("utf8", ...each)] : []));
const split = (text: string | Buffer): string[] => {
  const body = Buffer.from(text as string);
  return texts(body, elements(body));
};
/** What the whole text parses as; undefined when it is no JSON. */
function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
const unreadable = expect.objectContaining({ code: "TRB-REQ-UNREADABLE" }) as Error;

describe("the events of a JSON body", () => {
  test("are the same in a PublishRequest and a bare array", () => {
    expect(split('{"events":[{"a":[1,"]}"]},2]}')).toEqual(['{"a":[1,"]}"]}', "2"]);
    expect(split('\ufeff [ {"a":1}\n,\t"x\\"," ]\r\n')).toEqual(['{"a":1}', '"x\\"," ']);
    expect(split(' { "ev\\u0065nts" : [ 1 ] } ')).toEqual(["1 "]);
    for (const empty of ["{}", "[]", '{"events":null}', " { } "]) expect(split(empty)).toEqual([]);
  });

  test.each([
    "",
    " ",
    "nonsense",
    '"text"',
    "5",
    '{"events":5}',
    '{"event":[]}',
    '{"events":[',
    '{"events":[]',
    '{"events":[]]',
    '{"events":[],"events":[]}',
    '{"events":[],"other":1}',
    '{"events"[]}',
    "{5:[]}",
    "[] []",
    "[1 2",
    '["a]',
    `{"${"x".repeat(70_000)}":[]}`,
    '["\\',
    "[{]",
  ])("of %j cannot be found", (text) => {
    expect(() => split(text)).toThrow(unreadable);
  });

  test("are those that a parser finds; what it refuses is refused, or one of them is no JSON", () => {
    const value = fc.oneof(fc.jsonValue({ maxDepth: 3 }), fc.string({ unit: "binary" }));
    fc.assert(
      fc.property(
        fc.array(value, { maxLength: 5 }),
        fc.constantFrom(undefined, 1, "\t"),
        fc.boolean(),
        fc.option(fc.tuple(fc.nat(), fc.constantFrom(...'[]{}",:\\ 1')), { nil: undefined }),
        (values, indent, wrapped, damage) => {
          let text = JSON.stringify(wrapped ? { events: values } : values, null, indent);
          if (damage) {
            const at = damage[0] % text.length;
            text = text.slice(0, at) + damage[1] + text.slice(at + 1);
          }
          // Half a character becomes a whole one.
          text = Buffer.from(text).toString();
          const whole = parse(text) as { events?: unknown } | unknown[] | undefined;
          let found: unknown[] | undefined;
          try {
            found = split(text).map((each) => parse(each));
          } catch {
            found = undefined;
          }
          const expected = Array.isArray(whole) ? whole : whole?.events;
          if (Array.isArray(expected) && (Array.isArray(whole) || Object.keys(whole!).length === 1)) {
            // Twice the same key: a parser takes the last.
            if (found !== undefined) expect(found).toEqual(expected);
            else expect(text.split('"events"').length).toBeGreaterThan(2);
          } else if (whole === undefined && found !== undefined) expect(found).toContain(undefined);
        },
      ),
      { numRuns: 2_000 },
    );
  });

  test.each([
    ["a long string", `["${"x".repeat(1_000_000)}"]`],
    ["escapes", `["${'\\"'.repeat(500_000)}"]`],
    ["brackets", `[${"[".repeat(500_000)}${"]".repeat(500_000)}]`],
    ["blanks", `[${" ".repeat(1_000_000)}1]`],
    ["blanks after it", `[1]${"\n".repeat(1_000_000)}`],
  ])("leave time for others while %s are passed", (_name, text) => {
    const body = Buffer.from(text);
    const found = [...elements(body)];
    expect(found.filter((each) => each === undefined).length).toBeGreaterThanOrEqual(14);
    expect(texts(body, found).map((each) => parse(each.slice(0, 1) === "[" ? "[]" : each))).not.toContain(
      undefined,
    );
  });
});

describe("the lines of an NDJSON body", () => {
  test("are found whatever the line break, and blank ones are not events", () => {
    const body = Buffer.from('\ufeff{"a":1}\r\n\n  \t\r\n{"b":2}\n{"c":3}');
    expect(texts(body, lines(body)).map(parse)).toEqual([{ a: 1 }, { b: 2 }, { c: 3 }]);
    expect([...lines(Buffer.from("\n\n"))]).toEqual([]);
  });

  test.each(["\n", " ", "\r\n"])("leave time for others while %j is passed over and over", (blank) => {
    const found = [...lines(Buffer.from(blank.repeat(1_000_000)))];
    expect(found.length).toBeGreaterThanOrEqual(14);
    expect(found.some((each) => each !== undefined)).toBe(false);
  });
});
