import { fromBinary } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { EDITIONS } from "../../test/support/payload-protos.js";
import { payloadRows } from "../../test/support/payload-rows.js";
import { type Choose, messageRow, writeMessage } from "../../test/support/random-payloads.js";
import { PayloadChecker } from "./payload.js";

/** The columnar decoder against @bufbuild/protobuf, for what each syntax and edition means by the same fields. */

const registry = inlineProtos(EDITIONS);

describe.each(["two.All", "three.All", "next.All"])("payloads of %s", (name) => {
  const type = registry.entityType(name)!;
  const checker = new PayloadChecker(type);
  test("are rows that say what the library reads, and pass at the gate", () => {
    fc.assert(
      fc.property(fc.infiniteStream(fc.nat()), fc.integer({ min: 1, max: 4 }), (choices, rows) => {
        const choose: Choose = (below) => choices.next().value! % below;
        const payloads = Array.from({ length: rows }, () => writeMessage(type, choose));
        const read = payloads.map((bytes) => messageRow(reflect(type, fromBinary(type, bytes))));
        expect(payloadRows(type, payloads)).toEqual(read);
        for (const bytes of payloads) expect(checker.check(bytes, 0, bytes.length)).toBe(true);
      }),
      { numRuns: 100 },
    );
  });
  test("that are damaged pass at the gate only when they are rows, and nothing throws", () => {
    fc.assert(
      fc.property(fc.infiniteStream(fc.nat()), fc.nat(), fc.nat(255), (choices, where, byte) => {
        const bytes = Uint8Array.from(writeMessage(type, (below) => choices.next().value! % below));
        if (bytes.length === 0) return;
        bytes[where % bytes.length] = byte;
        const [row] = payloadRows(type, [bytes]);
        if (checker.check(bytes, 0, bytes.length)) expect(row).toBeDefined();
      }),
      { numRuns: 100 },
    );
  });
});

describe("what each syntax means by an absent or unknown value", () => {
  const row = (name: string, hex: string) =>
    payloadRows(registry.entityType(name)!, [Buffer.from(hex.replaceAll(" ", ""), "hex")])[0]!;
  test("absent is zero without presence and NULL with it, whatever default is declared", () => {
    expect(row("three.All", "")).toMatchObject({
      f_int32: "0",
      kind: "NONE",
      o_int: null,
      o_kind: null,
      sub: null,
    });
    expect(row("two.All", "")).toMatchObject({ f_int32: null, kind: null, sub: null, ints: [], part: null });
    expect(row("next.All", "")).toMatchObject({ f_int32: null, kind: "NONE", defaulted: null, shut: null });
    expect(row("two.Sub", "")).toMatchObject({ n: null });
  });
  test("an unknown value of a closed enum is as if absent: also in lists, a oneof and a map", () => {
    const maps = inlineProtos({
      "m.proto": `package m; enum K { NONE = 0; TWO = 2; } message M { map<string, K> by = 1; optional K k = 2; }`,
    });
    const m = (hex: string) =>
      payloadRows(maps.entityType("m.M")!, [Buffer.from(hex.replaceAll(" ", ""), "hex")])[0]!;
    expect(m("0a05 0a0161 1002  0a05 0a0162 1009  0a03 0a0163  1009")).toEqual({
      by: [
        ["a", "TWO"],
        ["c", "NONE"],
      ],
      k: null,
    });
    expect(row("two.All", "c002 05 d002 09")).toMatchObject({ p_int: "5", p_kind: null });
    expect(row("two.All", "c002 05 d002 02")).toMatchObject({ p_int: null, p_kind: "TWO" });
    expect(row("two.All", "b201 03 010902 b001 09 b001 01")).toMatchObject({ kinds: ["ONE", "TWO", "ONE"] });
    expect(row("three.All", "b201 03 010902")).toMatchObject({ kinds: ["ONE", "9", "TWO"] });
  });
  test("text that need not be UTF-8 is shown as readers show it", () => {
    expect(row("two.All", "52 04 61ff c328")).toMatchObject({ f_string: "a\ufffd\ufffd(" });
    expect(payloadRows(registry.entityType("three.All")!, [Buffer.from("520461ffc328", "hex")])).toEqual([
      undefined,
    ]);
  });
});
