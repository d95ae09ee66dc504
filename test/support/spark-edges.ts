import { gzipSync } from "node:zlib";
import protobuf from "protobufjs";
import { encodeEvent } from "../../services/contracts/encode-event.js";
import { Random } from "./lake.js";

/** An entity type with every kind of field that Spark can be made to read our way, and events at the edges of each. */

export const EDGE = "t.v1.Edge";
export const EDGE_PROTO = `syntax = "proto3";
package t.v1;
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
enum Kind { KIND_UNSPECIFIED = 0; KIND_ONE = 1; KIND_TWO = 2; }
message Nothing {}
message Inner { string name = 1; Kind kind = 2; repeated Inner more = 3; uint64 wide = 4; optional int32 maybe = 5; }
message Edge {
  string text = 1;
  string other = 2;
  int32 small = 3;
  int64 big = 4;
  uint32 natural = 5;
  uint64 wide = 6;
  sint32 zigzag = 7;
  sint64 zigzag_big = 8;
  fixed32 fix = 9;
  fixed64 fix_big = 10;
  sfixed32 signed_fix = 11;
  sfixed64 signed_fix_big = 12;
  float real = 13;
  double ratio = 14;
  bool flag = 15;
  bytes raw = 16;
  Kind kind = 17;
  repeated Kind kinds = 18;
  optional string maybe = 19;
  optional int64 maybe_big = 20;
  repeated string labels = 21;
  repeated int64 numbers = 22;
  map<string, string> fields = 23;
  map<int32, Inner> inners = 24;
  map<string, Kind> kind_of = 25;
  Inner inner = 26;
  repeated Inner list = 27;
  Edge self = 28;
  repeated Edge selves = 29;
  Nothing nothing = 30;
  google.protobuf.Timestamp at = 31;
  google.protobuf.Timestamp until = 32;
  repeated google.protobuf.Timestamp times = 33;
  google.protobuf.StringValue wrapped = 34;
  google.protobuf.UInt64Value wrapped_wide = 35;
  google.protobuf.BoolValue wrapped_flag = 36;
  oneof choice { string word = 37; int64 figure = 38; Inner part = 39; Kind which = 40; }
  optional double maybe_ratio = 41;
  optional bool maybe_flag = 42;
  optional Kind maybe_kind = 43;
  // Spark does not read these our way.
  google.protobuf.Duration span = 44;
  google.protobuf.Struct document = 45;
}
`;
/** What Spark is told to leave out. */
export const EDGE_UNREADABLE = ["document", "span"];

const type = protobuf
  .parse(
    EDGE_PROTO.replace(/import .*\n/g, "").replaceAll("google.protobuf.", "g") +
      `message gTimestamp { int64 seconds = 1; int32 nanos = 2; } message gDuration { int64 seconds = 1; }
       message gStruct {} message gStringValue { string value = 1; } message gUInt64Value { uint64 value = 1; }
       message gBoolValue { bool value = 1; }`,
    new protobuf.Root(),
    { keepCase: true },
  )
  .root.lookupType(EDGE);

const TEXTS = [
  "",
  "ann",
  "Zoë",
  "日本 🎉",
  " padded\t",
  "a,b",
  "e\u0301",
  "x".repeat(300),
  "it's",
  "100%",
  "a_b",
];
const SMALL = [0, 1, -1, 7, -7, 2147483647, -2147483648];
const BIG = ["0", "1", "-1", "3", "-3", "9007199254740993", "9223372036854775807", "-9223372036854775808"];
const WIDE = ["0", "1", "9223372036854775808", "18446744073709551615"];
const REALS = [
  0,
  -0,
  1.5,
  -2.5,
  1e300,
  5e-324,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  0.1,
];
const SECONDS = ["-62135596800", "-2208988801", "-1", "0", "951782400", "1709251199", "253402300799"];
const NANOS = [0, 999, 1_000, 123_456_789, 999_999_999];
/** Known ones and one that the enum has not heard of. */
const KINDS = [0, 1, 2, 77, -3];

function edge(random: Random, depth = 0): Record<string, unknown> {
  const all: Record<string, () => unknown> = {
    text: () => random.pick(TEXTS),
    other: () => random.pick(TEXTS),
    small: () => random.pick(SMALL),
    big: () => random.pick(BIG),
    natural: () => random.pick([0, 1, 4294967295]),
    wide: () => random.pick(WIDE),
    zigzag: () => random.pick(SMALL),
    zigzag_big: () => random.pick(BIG),
    fix: () => random.pick([0, 4294967295]),
    fix_big: () => random.pick(WIDE),
    signed_fix: () => random.pick(SMALL),
    signed_fix_big: () => random.pick(BIG),
    real: () => random.pick(REALS),
    ratio: () => random.pick(REALS),
    flag: () => random.chance(0.5),
    raw: () => Buffer.from(random.pick(["", "00ff", "e29c93"]), "hex"),
    kind: () => random.pick(KINDS),
    kinds: () => some(random, () => random.pick(KINDS)),
    maybe: () => random.pick(TEXTS),
    maybe_big: () => random.pick(BIG),
    labels: () => some(random, () => random.pick(TEXTS)),
    numbers: () => some(random, () => random.pick(BIG)),
    fields: () => ({ [random.pick(["", "ключ", "team"])]: random.pick(TEXTS), team: random.pick(TEXTS) }),
    inners: () => ({ [random.pick(SMALL)]: inner(random) }),
    kind_of: () => ({ a: random.pick(KINDS), b: random.pick(KINDS) }),
    inner: () => inner(random),
    list: () => some(random, () => inner(random)),
    nothing: () => ({}),
    at: () => time(random),
    until: () => time(random),
    times: () => some(random, () => time(random)),
    wrapped: () => ({ value: random.pick(TEXTS) }),
    wrapped_wide: () => ({ value: random.pick(WIDE) }),
    wrapped_flag: () => ({ value: random.chance(0.5) }),
    maybe_ratio: () => random.pick(REALS),
    maybe_flag: () => random.chance(0.5),
    maybe_kind: () => random.pick(KINDS),
    span: () => ({ seconds: 1 }),
    document: () => ({}),
    [random.pick(["word", "figure", "part", "which"])]: () => undefined,
    ...(depth === 0
      ? { self: () => edge(random, 1), selves: () => some(random, () => edge(random, 1)) }
      : {}),
  };
  const chosen = random.pick(["word", "figure", "part", "which"]);
  const choice = {
    word: random.pick(TEXTS),
    figure: random.pick(BIG),
    part: inner(random),
    which: random.pick(KINDS),
  };
  all[chosen] = () => choice[chosen as keyof typeof choice];
  const made: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(all)) {
    const filled = random.chance(0.7) ? value() : undefined;
    if (filled !== undefined) made[name] = filled;
  }
  return made;
}

const some = <T>(random: Random, one: () => T): T[] => Array.from({ length: random.below(4) }, one);
const time = (random: Random) => ({ seconds: random.pick(SECONDS), nanos: random.pick(NANOS) });
const inner = (random: Random): Record<string, unknown> => ({
  name: random.pick(TEXTS),
  kind: random.pick(KINDS),
  ...(random.chance(0.5) ? { wide: random.pick(WIDE), maybe: random.pick(SMALL) } : {}),
  more: random.chance(0.3) ? [{ name: "deeper" }] : [],
});

/** A Zstandard frame of one raw block. */
function zstd(bytes: Uint8Array): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt32LE(0xfd2fb528, 0);
  // A content size of four bytes, one segment.
  head[4] = 0xa0;
  head.writeUInt32LE(bytes.length, 5);
  head.writeUIntLE((bytes.length << 3) | 1, 9, 3);
  return Buffer.concat([head, bytes]);
}

/**
 * Events of few entities, so that each step of last-write-wins decides now and then: equal versions, equal payloads, an
 * equal time or none; some packed.
 */
export function edgeEvents(seed: number, count: number): Buffer[] {
  const random = new Random(seed);
  const payloads = Array.from({ length: count / 3 }, () =>
    type.encode(type.fromObject(edge(random))).finish(),
  );
  return Array.from({ length: count }, () => {
    const operation = random.chance(0.12) ? 3 : 1 + random.below(2);
    const value = random.pick(payloads);
    const compression = operation === 3 ? 0 : random.pick([0, 0, 0, 1, 2]);
    const packed = [value, gzipSync(value), zstd(value)][compression]!;
    return encodeEvent({
      tenantId: random.pick(["acme", "acme:eu", "b.x-9"]),
      entityType: EDGE,
      entityId: `${random.pick(["", "é/", "🜁"])}${random.below(Math.ceil(count / 15))}`,
      operation,
      version: random.chance(0.05) ? "9223372036854775807" : 1 + random.below(4),
      compression,
      ...(random.chance(0.7) ? { occurredAt: time(random) } : {}),
      ...(operation === 3 ? {} : { payload: { value: packed } }),
    });
  });
}
