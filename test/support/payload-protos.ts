/** The same fields in each syntax and edition, and every kind of field of proto3, for what reads and writes payloads. */

const SCALAR_FIELDS = (label: string): string =>
  ["double", "float", "int32", "sint64", "uint32", "uint64", "fixed32", "sfixed64", "bool", "string", "bytes"]
    .map((type, index) => `${label} ${type} f_${type} = ${index + 1};`)
    .join(" ");
const REPEATED = `repeated int32 ints = 20; repeated sfixed32 fixed = 21; repeated Kind kinds = 22; repeated string texts = 23;
  map<int32, string> by_int = 30; map<string, Sub> by_text = 31;
  oneof pick { int64 p_int = 40; string p_text = 41; Kind p_kind = 42; Sub p_sub = 43; }`;
export const EDITIONS = {
  "two.proto": `package two; enum Kind { ONE = 1; TWO = 2; NONE = 0; }
    message Sub { optional int32 n = 1 [default = 5]; optional Kind kind = 2; repeated string texts = 3; }
    message All { ${SCALAR_FIELDS("optional")} optional Kind kind = 15 [default = TWO]; optional Sub sub = 16;
      ${REPEATED} optional group Part = 50 { optional int32 n = 1; repeated group Deep = 2 { optional string text = 1; } }
      repeated group Many = 51 { optional Kind kind = 1; optional Sub sub = 2; } repeated int64 packed = 52 [packed = true];
      extensions 1000 to max; }
    extend All { optional string note = 1000; }`,
  "three.proto": `syntax = "proto3"; package three; enum Kind { NONE = 0; ONE = 1; TWO = 2; }
    message Sub { int32 n = 1; Kind kind = 2; repeated string texts = 3; }
    message All { ${SCALAR_FIELDS("")} Kind kind = 15; Sub sub = 16; ${REPEATED} optional int32 o_int = 50;
      optional Kind o_kind = 51; repeated int64 packed = 52 [packed = false]; }`,
  "next.proto": `edition = "2023"; package next; option features.message_encoding = DELIMITED;
    enum Kind { NONE = 0; ONE = 1; TWO = 2; } enum Shut { option features.enum_type = CLOSED; A = 3; B = 4; }
    message Sub { int32 n = 1 [features.field_presence = IMPLICIT]; Kind kind = 2; repeated string texts = 3; }
    message All { ${SCALAR_FIELDS("")} Kind kind = 15 [features.field_presence = IMPLICIT]; Sub sub = 16; ${REPEATED}
      Shut shut = 50; repeated Shut shuts = 51 [features.repeated_field_encoding = EXPANDED]; repeated Sub subs = 52;
      string loose = 53 [features.utf8_validation = NONE]; Sub prefixed = 54 [features.message_encoding = LENGTH_PREFIXED];
      string defaulted = 55 [default = "x"]; }`,
};

export const PROTO = `syntax = "proto3"; package t;
  enum Kind { KIND_NONE = 0; KIND_ONE = 1; KIND_OF_A_VERY_LONG_NAME = 2; KIND_LESS = -1; }
  message Inner { string text = 1; optional int32 depth = 2; repeated sint64 numbers = 3; Kind kind = 4; All up = 5;
    Deep deep = 6; map<string, Deep> deeps = 7; oneof pick { string a = 8; Deep b = 9; } }
  message Deep { bytes raw = 1; repeated string words = 2; google.protobuf.Timestamp at = 3; }
  message Empty {}
  message All {
    double f_double = 1; float f_float = 2; int32 f_int32 = 3; sint32 f_sint32 = 4; uint32 f_uint32 = 5;
    int64 f_int64 = 6; sint64 f_sint64 = 7; uint64 f_uint64 = 8; fixed32 f_fixed32 = 9; sfixed32 f_sfixed32 = 10;
    fixed64 f_fixed64 = 11; sfixed64 f_sfixed64 = 12; bool f_bool = 13; string f_string = 14; bytes f_bytes = 15;
    Kind f_kind = 16;
    optional int32 o_int32 = 20; optional string o_string = 21; optional Kind o_kind = 22; optional bool o_bool = 23;
    oneof choice { int64 c_int64 = 30; string c_string = 31; Inner c_inner = 32; }
    repeated int32 packed = 40; repeated int32 loose = 41 [packed = false]; repeated double doubles = 42;
    repeated bool flags = 43; repeated Kind kinds = 44; repeated string strings = 45; repeated bytes blobs = 46;
    repeated Inner inners = 47; repeated uint64 big = 48;
    map<string, string> by_string = 50; map<int32, double> by_int = 51; map<bool, Inner> by_bool = 52;
    map<string, Kind> to_kind = 53;
    Inner inner = 60; All again = 61; Empty empty = 62;
    google.protobuf.Timestamp at = 70; google.protobuf.Duration took = 71; google.protobuf.Struct json = 72;
    google.protobuf.StringValue w_string = 73; google.protobuf.Int64Value w_int64 = 74;
    google.protobuf.BoolValue w_bool = 75; google.protobuf.BytesValue w_bytes = 76; google.protobuf.UInt64Value w_uint64 = 77;
    google.protobuf.DoubleValue w_double = 78; google.protobuf.ListValue list = 79;
    repeated google.protobuf.Timestamp ats = 80; repeated google.protobuf.StringValue w_strings = 81;
    string far = 536870911;
  }
  message Narrow { int32 f_int32 = 3; repeated Inner inners = 47; }`;

const IMPORTS = ["timestamp", "duration", "struct", "wrappers"]
  .map((name) => `import "google/protobuf/${name}.proto";`)
  .join(" ");
/** With what it imports, which protobufjs has to be given. */
export const EVERY_FIELD = { "t.proto": PROTO.replace("package t;", `package t; ${IMPORTS}`) };
