import { create, type DescField, type DescMessage, ScalarType, toBinary } from "@bufbuild/protobuf";
import {
  type DescriptorProto,
  DescriptorProtoSchema,
  type FieldDescriptorProto,
  FieldDescriptorProtoSchema,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
  file_google_protobuf_timestamp,
  file_google_protobuf_wrappers,
  FieldDescriptorProto_Label as Label,
  OneofDescriptorProtoSchema,
  FeatureSet_FieldPresence as Presence,
  FieldDescriptorProto_Type as Type,
} from "@bufbuild/protobuf/wkt";

/**
 * What Spark's `from_protobuf` needs to make of a payload what contracts/payload-columns.ts makes of it: descriptors
 * that it reads our way, and SQL over what it read.
 *
 * The descriptors are the message's own, unfolded into a tree, since Spark knows no message inside itself: where the
 * message comes again, and where it has no fields, they say `bytes`, as our column does, and the wire is the same.
 */
export interface SparkPayload {
  /** A FileDescriptorSet whose message SPARK_MESSAGE is the payload. */
  readonly descriptors: Uint8Array;
  /** SQL for the payload's struct, of a column that holds what `from_protobuf` made with SPARK_OPTIONS. */
  readonly payload: (decoded: string) => string;
  /** Fields that Spark can't be made to read our way, and why. They are not in the struct. */
  readonly unreadable: ReadonlyMap<string, string>;
}

export const SPARK_MESSAGE = "tributary.spark.Payload";
/** Of what does not decode all fields are NULL, this one too; it is an empty list otherwise. */
export const SPARK_DECODED = "tributary_decoded";
export const SPARK_OPTIONS = {
  mode: "PERMISSIVE",
  "emit.default.values": "true",
  "upcast.unsigned.ints": "true",
  "unwrap.primitive.wrapper.types": "true",
} as const;

const AS_TEXT = "its column is JSON here, and Spark has no JSON of it";
const UNREADABLE: Readonly<Record<string, string>> = {
  "google.protobuf.Struct": AS_TEXT,
  "google.protobuf.Value": AS_TEXT,
  "google.protobuf.ListValue": AS_TEXT,
  "google.protobuf.Duration": "its column is a number of microseconds here, and an interval there",
};

export function sparkPayload(type: DescMessage): SparkPayload {
  const unreadable = new Map<string, string>();
  for (const field of type.fields) {
    const reason = unreadableField(field, [type]);
    if (reason !== undefined) unreadable.set(field.name, reason);
  }
  // Of a oneof the last member counts: it takes all of them to know.
  for (const { fields } of type.oneofs) {
    const [first] = fields.filter(({ name }) => unreadable.has(name));
    if (first === undefined) continue;
    for (const { name } of fields)
      if (!unreadable.has(name)) unreadable.set(name, unreadable.get(first.name)!);
  }
  const shape = new Unfolded(type, [], unreadable);
  const anchor = create(FieldDescriptorProtoSchema, {
    name: SPARK_DECODED,
    number: freeNumber(type),
    label: Label.REPEATED,
    type: Type.BYTES,
  });
  const message = { ...shape.descriptor, name: "Payload", field: [...shape.descriptor.field, anchor] };
  const file = create(FileDescriptorProtoSchema, {
    name: "tributary/spark/payload.proto",
    package: "tributary.spark",
    syntax: "proto3",
    dependency: ["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"],
    messageType: [message],
  });
  const wellKnown = [file_google_protobuf_timestamp, file_google_protobuf_wrappers].map(({ proto }) => proto);
  return {
    descriptors: toBinary(
      FileDescriptorSetSchema,
      create(FileDescriptorSetSchema, { file: [...wellKnown, file] }),
    ),
    payload: (decoded) => structOf(shape, decoded, 0),
    unreadable,
  };
}

function unreadableField(field: DescField, outer: readonly DescMessage[]): string | undefined {
  if (field.message !== undefined) {
    const { typeName } = field.message;
    if (UNREADABLE[typeName] !== undefined) return `${typeName}: ${UNREADABLE[typeName]}`;
    if (field.fieldKind !== "map" && field.delimitedEncoding) return "a group, which Spark does not read";
    if (isLeaf(typeName) || isBytes(field.message, outer)) return undefined;
    for (const inner of field.message.fields) {
      const reason = unreadableField(inner, [...outer, field.message]);
      if (reason !== undefined) return `${inner.name}: ${reason}`;
    }
    return undefined;
  }
  if (field.enum !== undefined && !field.enum.open)
    return "a closed enum (proto2), whose unknown values count here as absent";
  const text =
    field.scalar === ScalarType.STRING || (field.fieldKind === "map" && field.mapKey === ScalarType.STRING);
  if (text && !field.utf8Validation) return "text that need not be UTF-8 (proto2)";
  return undefined;
}

const WRAPPED = /^google\.protobuf\.(?:String|Bytes|Bool|U?Int32|U?Int64|Float|Double)Value$/;
const isLeaf = (typeName: string): boolean =>
  typeName === "google.protobuf.Timestamp" || WRAPPED.test(typeName);
const isBytes = (message: DescMessage, outer: readonly DescMessage[]): boolean =>
  outer.includes(message) || message.fields.length === 0;

function freeNumber(type: DescMessage): number {
  const taken = new Set(type.fields.map(({ number }) => number));
  // Between the numbers that protobuf keeps for itself and the last one.
  let number = 536_870_911;
  while (taken.has(number)) number--;
  return number;
}

/** A message of a tree: the descriptor of this place in it, and which of its fields need SQL. */
class Unfolded {
  readonly descriptor: DescriptorProto;
  readonly fields: { readonly field: DescField; readonly inner: Unfolded | undefined }[] = [];

  /** `name`: the message's own, fully qualified, as references have it. */
  constructor(
    type: DescMessage,
    outer: readonly DescMessage[],
    without: ReadonlyMap<string, string>,
    private readonly name = `.${SPARK_MESSAGE}`,
    path = "",
  ) {
    this.descriptor = create(DescriptorProtoSchema, { name: `M${path}` });
    // Those that only say "optional" come after them.
    for (const { name } of type.oneofs) {
      if (type.fields.some((field) => field.oneof?.name === name && !without.has(field.name)))
        this.descriptor.oneofDecl.push(create(OneofDescriptorProtoSchema, { name }));
    }
    const within = [...outer, type];
    for (const field of type.fields) {
      if (without.has(field.name)) continue;
      this.fields.push({ field, inner: this.add(field, within, `${path}_${field.number}`) });
    }
  }

  private add(field: DescField, within: readonly DescMessage[], path: string): Unfolded | undefined {
    const proto = create(FieldDescriptorProtoSchema, {
      name: field.name,
      number: field.number,
      label: field.fieldKind === "list" ? Label.REPEATED : Label.OPTIONAL,
    });
    let inner: Unfolded | undefined;
    if (field.fieldKind === "map") {
      const entry = create(DescriptorProtoSchema, { name: `M${path}`, options: { mapEntry: true } });
      entry.field.push(
        create(FieldDescriptorProtoSchema, {
          name: "key",
          number: 1,
          label: Label.OPTIONAL,
          type: field.mapKey as number,
        }),
      );
      const value = create(FieldDescriptorProtoSchema, { name: "value", number: 2, label: Label.OPTIONAL });
      inner = this.typed(value, field, within, `${path}_v`);
      entry.field.push(value);
      this.descriptor.nestedType.push(entry);
      proto.label = Label.REPEATED;
      proto.type = Type.MESSAGE;
      proto.typeName = `${this.name}.${entry.name}`;
    } else inner = this.typed(proto, field, within, path);
    if (field.fieldKind !== "list" && field.fieldKind !== "map") this.present(proto, field);
    this.descriptor.field.push(proto);
    return inner;
  }

  /** Gives a field its type. */
  private typed(
    proto: FieldDescriptorProto,
    field: DescField,
    within: readonly DescMessage[],
    path: string,
  ): Unfolded | undefined {
    if (field.message === undefined) {
      proto.type = field.enum === undefined ? (field.scalar as number) : Type.ENUM;
      if (field.enum === undefined) return undefined;
      const { name, value } = field.enum.proto;
      // Values of an enum stand beside it; in a message of their own they meet no others.
      const holder = create(DescriptorProtoSchema, {
        name: `E${path}`,
        enumType: [{ name, value: value.map((each) => ({ name: each.name, number: each.number })) }],
      });
      if (new Set(value.map(({ number }) => number)).size < value.length)
        holder.enumType[0]!.options = { allowAlias: true } as NonNullable<
          (typeof holder.enumType)[0]["options"]
        >;
      this.descriptor.nestedType.push(holder);
      proto.typeName = `${this.name}.${holder.name}.${name}`;
      return undefined;
    }
    if (isLeaf(field.message.typeName)) {
      proto.type = Type.MESSAGE;
      proto.typeName = `.${field.message.typeName}`;
      return undefined;
    }
    if (isBytes(field.message, within)) {
      proto.type = Type.BYTES;
      return undefined;
    }
    const inner = new Unfolded(field.message, within, new Map(), `${this.name}.M${path}`, path);
    this.descriptor.nestedType.push(inner.descriptor);
    proto.type = Type.MESSAGE;
    proto.typeName = inner.name;
    return inner;
  }

  /** Members of a oneof stay together; another field with presence has one of its own, as proto3 spells it. */
  private present(proto: FieldDescriptorProto, field: DescField): void {
    const implicit = field.presence === Presence.IMPLICIT;
    if (implicit && field.message === undefined) return;
    const name = field.oneof?.name ?? `_${field.name}`;
    if (field.oneof === undefined && proto.type === Type.MESSAGE) return;
    let index = this.descriptor.oneofDecl.findIndex((each) => each.name === name);
    if (index < 0) index = this.descriptor.oneofDecl.push(create(OneofDescriptorProtoSchema, { name })) - 1;
    proto.oneofIndex = index;
    if (field.oneof === undefined) proto.proto3Optional = true;
  }
}

/** Numbers without a sign that Spark reads as if they had one. */
const UNSIGNED: Partial<Record<ScalarType, (of: string) => string>> = {
  [ScalarType.FIXED32]: (of) => `(cast(${of} as bigint) & 4294967295L)`,
  [ScalarType.FIXED64]: (of) =>
    `cast(if(${of} < 0, 18446744073709551616, 0) + cast(${of} as decimal(20, 0)) as decimal(20, 0))`,
};

/** Whether what Spark reads of the field differs from ours. */
const differs = (field: DescField, inner: Unfolded | undefined): boolean =>
  field.enum !== undefined ||
  (field.scalar !== undefined && UNSIGNED[field.scalar] !== undefined) ||
  (inner?.fields.some((each) => differs(each.field, each.inner)) ?? false);

function structOf(shape: Unfolded, of: string, depth: number): string {
  const fields = shape.fields.map(({ field, inner }) => {
    const name = `${of}.\`${field.name}\``;
    return `'${field.name}', ${differs(field, inner) ? mended(field, inner, name, depth) : name}`;
  });
  return `named_struct(${fields.join(", ")})`;
}

function mended(field: DescField, inner: Unfolded | undefined, of: string, depth: number): string {
  const item = `x${depth}`;
  if (field.fieldKind === "list") return `transform(${of}, ${item} -> ${one(field, inner, item, depth + 1)})`;
  if (field.fieldKind === "map")
    return `transform_values(${of}, (k${depth}, ${item}) -> ${one(field, inner, item, depth + 1)})`;
  return one(field, inner, of, depth);
}

/** An enum's unknown value is its number; the name that Spark makes up ends with it. */
function one(field: DescField, inner: Unfolded | undefined, of: string, depth: number): string {
  if (inner !== undefined) return `if(${of} is null, null, ${structOf(inner, of, depth)})`;
  const signed = field.scalar === undefined ? undefined : UNSIGNED[field.scalar];
  if (signed !== undefined) return signed(of);
  const made = `UNKNOWN_ENUM_VALUE_${field.enum!.name}_`;
  return `if(startswith(${of}, '${made}'), substr(${of}, ${made.length + 1}), ${of})`;
}
