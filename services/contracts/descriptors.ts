import { create, createFileRegistry, type FileRegistry, type MessageInitShape } from "@bufbuild/protobuf";
import {
  type DescriptorProtoSchema,
  type EnumDescriptorProtoSchema,
  type FieldDescriptorProtoSchema,
  FieldDescriptorProto_Type as FieldType,
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
  file_google_protobuf_any,
  file_google_protobuf_duration,
  file_google_protobuf_empty,
  file_google_protobuf_field_mask,
  file_google_protobuf_struct,
  file_google_protobuf_timestamp,
  file_google_protobuf_wrappers,
  FieldDescriptorProto_Label as Label,
} from "@bufbuild/protobuf/wkt";
import protobuf from "protobufjs";

/** One parsed .proto file: what it defines at its top level, as protobufjs reflects it. */
export interface ProtoSource {
  /** As other files import it, e.g. "scm/v1/scm.proto". */
  readonly name: string;
  readonly package: string;
  readonly imports: readonly string[];
  readonly objects: readonly protobuf.ReflectionObject[];
}

type FieldInit = MessageInitShape<typeof FieldDescriptorProtoSchema>;
type MessageInit = MessageInitShape<typeof DescriptorProtoSchema>;
type EnumInit = MessageInitShape<typeof EnumDescriptorProtoSchema>;

const WELL_KNOWN = [
  file_google_protobuf_any,
  file_google_protobuf_duration,
  file_google_protobuf_empty,
  file_google_protobuf_field_mask,
  file_google_protobuf_struct,
  file_google_protobuf_timestamp,
  file_google_protobuf_wrappers,
];

const SCALARS: Readonly<Record<string, FieldType>> = {
  double: FieldType.DOUBLE,
  float: FieldType.FLOAT,
  int64: FieldType.INT64,
  uint64: FieldType.UINT64,
  int32: FieldType.INT32,
  fixed64: FieldType.FIXED64,
  fixed32: FieldType.FIXED32,
  bool: FieldType.BOOL,
  string: FieldType.STRING,
  bytes: FieldType.BYTES,
  uint32: FieldType.UINT32,
  sfixed32: FieldType.SFIXED32,
  sfixed64: FieldType.SFIXED64,
  sint32: FieldType.SINT32,
  sint64: FieldType.SINT64,
};

/**
 * The sources as descriptors for @bufbuild/protobuf. protobufjs's own descriptor export writes one file per package
 * with relative type names and no imports, which other libraries cannot bind; this writes what protoc would.
 */
export function describeFiles(sources: readonly ProtoSource[]): FileRegistry {
  const files: FileDescriptorProto[] = WELL_KNOWN.map((file) => file.proto);
  // Imports of other google/protobuf files serve options only, which JSON does not need.
  const known = new Set([...files.map((file) => file.name), ...sources.map((source) => source.name)]);
  for (const source of sources) files.push(describeFile(source, known));
  return createFileRegistry(create(FileDescriptorSetSchema, { file: files }));
}

function describeFile(source: ProtoSource, known: ReadonlySet<string>): FileDescriptorProto {
  return create(FileDescriptorProtoSchema, {
    name: source.name,
    package: source.package,
    syntax: "proto3",
    dependency: source.imports.filter((name) => known.has(name)),
    messageType: source.objects.filter((object) => object instanceof protobuf.Type).map(describeMessage),
    enumType: source.objects.filter((object) => object instanceof protobuf.Enum).map(describeEnum),
  });
}

function describeMessage(type: protobuf.Type): MessageInit {
  const entries: MessageInit[] = [];
  const field: FieldInit[] = [];
  // Oneofs in their declared order, but synthetic ones (proto3 optional) last, as protoc writes them.
  const oneofs = [...type.oneofsArray].sort((a, b) => Number(isSynthetic(a)) - Number(isSynthetic(b)));
  for (const each of type.fieldsArray) {
    each.resolve();
    if (each instanceof protobuf.MapField) {
      const entry = `${pascal(each.name)}Entry`;
      entries.push(describeMapEntry(entry, each));
      field.push({
        ...names(each),
        label: Label.REPEATED,
        type: FieldType.MESSAGE,
        typeName: `${type.fullName}.${entry}`,
      });
      continue;
    }
    field.push({
      ...names(each),
      ...typeOf(each),
      label: each.repeated ? Label.REPEATED : Label.OPTIONAL,
      ...(each.partOf === null ? {} : { oneofIndex: oneofs.indexOf(each.partOf) }),
      ...(each.partOf !== null && isSynthetic(each.partOf) ? { proto3Optional: true } : {}),
      ...(each.repeated && each.options?.packed !== undefined ? { options: { packed: each.packed } } : {}),
    });
  }
  const nested = type.nestedArray;
  return {
    name: type.name,
    field,
    nestedType: [...nested.filter((each) => each instanceof protobuf.Type).map(describeMessage), ...entries],
    enumType: nested.filter((each) => each instanceof protobuf.Enum).map(describeEnum),
    oneofDecl: oneofs.map((oneof) => ({ name: oneof.name })),
  };
}

function describeMapEntry(name: string, map: protobuf.MapField): MessageInit {
  const key: FieldInit = {
    name: "key",
    jsonName: "key",
    number: 1,
    label: Label.OPTIONAL,
    type: SCALARS[map.keyType]!,
  };
  const value: FieldInit = {
    name: "value",
    jsonName: "value",
    number: 2,
    label: Label.OPTIONAL,
    ...typeOf(map),
  };
  return { name, field: [key, value], options: { mapEntry: true } };
}

function describeEnum(each: protobuf.Enum): EnumInit {
  return {
    name: each.name,
    value: Object.entries(each.values).map(([name, number]) => ({ name, number })),
    ...(each.options?.allow_alias === true ? { options: { allowAlias: true } } : {}),
  };
}

const names = (field: protobuf.FieldBase) => ({
  name: field.name,
  jsonName: field.jsonName ?? lowerCamel(field.name),
  number: field.id,
});

function typeOf(field: protobuf.FieldBase): { type: FieldType; typeName?: string } {
  const resolved = field.resolvedType;
  if (resolved instanceof protobuf.Enum) return { type: FieldType.ENUM, typeName: resolved.fullName };
  if (resolved instanceof protobuf.Type) return { type: FieldType.MESSAGE, typeName: resolved.fullName };
  return { type: SCALARS[field.type]! };
}

/** An `optional` field of proto3 is, in descriptors, the only member of a oneof made for it. */
const isSynthetic = (oneof: protobuf.OneOf): boolean =>
  oneof.fieldsArray.length === 1 && oneof.fieldsArray[0]!.options?.proto3_optional === true;

/** As protoc derives it: each "_" is dropped and the character after it capitalised. */
const lowerCamel = (name: string): string => name.replace(/_+(.?)/g, (_, next: string) => next.toUpperCase());

const pascal = (name: string): string => {
  const camel = lowerCamel(name);
  return camel.charAt(0).toUpperCase() + camel.slice(1);
};
