import { createHash } from "node:crypto";
import { readdirSync, readFileSync, realpathSync } from "node:fs";
import { join, sep } from "node:path";
import {
  create,
  createFileRegistry,
  type DescField,
  type DescFile,
  type DescMessage,
  type FileRegistry,
  fromBinary,
  toBinary,
} from "@bufbuild/protobuf";
import {
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import protobuf from "protobufjs";
import "protobufjs/ext/descriptor.js";
import { errno, TributaryError } from "../base/errors.js";
import { compileProtos, importsFile } from "./protoc.js";

/** Packages whose messages serve others: none of them is an entity type. */
const SERVING = ["tributary", "google", "buf.validate", "pb"];

/** The envelope, and what an Any of JSON may hold without an import. */
const ALWAYS = [
  ...["change_event", "bus"].map((name) => `tributary/v1/${name}.proto`),
  ...["any", "duration", "empty", "field_mask", "struct", "timestamp", "wrappers"].map(
    (name) => `google/protobuf/${name}.proto`,
  ),
];

/**
 * Every message that the configured descriptors define, known at run time: a new product domain is a new file, not new
 * code. Columns, checks and proto3 JSON all go by the same descriptors, those that protoc or buf wrote, so proto2,
 * proto3 and editions mean what their authors mean.
 */
export class ProtoRegistry {
  /** Every message and enum, well-known types included. */
  readonly types: FileRegistry;
  private readonly entities: ReadonlyMap<string, DescMessage>;
  private readonly files: readonly FileDescriptorProto[];
  private reflected: protobuf.Root | undefined;

  private constructor(files: readonly FileDescriptorProto[]) {
    this.files = files;
    this.types = registryOf(files);
    this.entities = new Map(entityTypesOf(this.types).map((type) => [type.typeName, type]));
    for (const type of this.entities.values()) checkNames(type, new Set());
  }

  /**
   * Compiles every .proto below `dirs`, and reads the FileDescriptorSets `descriptors` (of `buf build` or
   * `protoc --include_imports`). Imports are looked up in each of `dirs` in turn, in `descriptors`, and last among
   * google/{protobuf,api,type,rpc,longrunning} and buf/validate, which are always there.
   * Errors: TRB-CONFIG, naming the file (relative to its folder), and line, column and field where there is one.
   */
  static load(dirs: readonly string[], descriptors: readonly string[] = []): ProtoRegistry {
    const sets = descriptors.map((path) => ({ path, files: readSet(path) }));
    const files = new Map<string, FileDescriptorProto>();
    const named = namesBelow(dirs);
    if (named.length > 0) {
      for (const file of compileProtos(dirs, named, [...descriptors, importsFile]))
        files.set(file.name, file);
    }
    for (const set of sets) {
      for (const file of set.files) {
        if (!files.has(file.name)) files.set(file.name, file);
        else if (!isServing(file.package) && named.includes(file.name)) {
          throw config(`${file.name}: stands in protoDirs and in protoDescriptors; expected one of them`);
        }
      }
    }
    const wanted = [...files.keys(), ...ALWAYS];
    for (const file of imports()) if (!files.has(file.name)) files.set(file.name, file);
    return new ProtoRegistry(sorted(files, wanted));
  }

  /** The registry of `bytes`, which another one gave: the same without the sources. */
  static of(bytes: Uint8Array): ProtoRegistry {
    return new ProtoRegistry(fromBinary(FileDescriptorSetSchema, bytes).file);
  }

  /** All descriptors as a FileDescriptorSet. */
  bytes(): Uint8Array {
    return toBinary(FileDescriptorSetSchema, create(FileDescriptorSetSchema, { file: [...this.files] }));
  }

  /** The payload message of that full name: a top-level message outside tributary.*, google.* and buf.validate. */
  entityType(name: string): DescMessage | undefined {
    return this.entities.get(name);
  }

  /** Of an entity type's file and of all that it imports, but for comments: another one where its payloads may mean otherwise. */
  fingerprint(name: string): string {
    const files = new Map<string, DescFile>();
    const add = (file: DescFile): void => {
      if (files.has(file.name)) return;
      files.set(file.name, file);
      for (const other of file.dependencies) add(other);
    };
    const type = this.entities.get(name);
    if (type !== undefined) add(type.file);
    const hash = createHash("sha256");
    for (const [, { proto }] of [...files].sort(([a], [b]) => (a < b ? -1 : 1)))
      hash.update(toBinary(FileDescriptorProtoSchema, { ...proto, sourceCodeInfo: undefined }));
    return hash.digest("hex");
  }

  /** Full names of all payload messages, sorted. */
  entityTypes(): readonly string[] {
    return [...this.entities.keys()].sort();
  }

  /** A message for the fast binary codec, names as in its .proto file. Errors: TRB-CONFIG for an unknown one. */
  codec(name: string): protobuf.Type {
    this.reflected ??= reflect(this.bytes());
    try {
      return this.reflected.lookupType(name);
    } catch (cause) {
      throw config(`protoDirs: expected a message ${name}`, cause);
    }
  }
}

let known: readonly FileDescriptorProto[] | undefined;

function imports(): readonly FileDescriptorProto[] {
  known ??= fromBinary(FileDescriptorSetSchema, readFileSync(importsFile)).file;
  return known;
}

function readSet(path: string): readonly FileDescriptorProto[] {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw config(`protoDescriptors: ${path} is not a readable file (${errno(cause)})`, cause);
  }
  try {
    const { file } = fromBinary(FileDescriptorSetSchema, bytes);
    if (file.length > 0 && file.every(({ name }) => name !== "")) return file;
  } catch {
    // Told below, like each file that is none.
  }
  throw config(
    `protoDescriptors: ${path} is no FileDescriptorSet; expected what buf build -o or protoc --descriptor_set_out wrote`,
  );
}

/** The wanted files and what they import, imports first, as the library binds them; a missing one or a circle is told. */
function sorted(
  files: ReadonlyMap<string, FileDescriptorProto>,
  wanted: readonly string[],
): FileDescriptorProto[] {
  const done = new Set<FileDescriptorProto>();
  const visit = (file: FileDescriptorProto, within: ReadonlySet<string>): void => {
    if (done.has(file)) return;
    for (const name of file.dependency) {
      const target = files.get(name);
      if (target === undefined) {
        throw config(
          `${file.name}: import "${name}" is in none of protoDescriptors; expected sets with their imports (protoc --include_imports)`,
        );
      }
      if (within.has(name)) throw config(`${file.name}: import "${name}" imports this file in turn`);
      visit(target, new Set([...within, name]));
    }
    done.add(file);
  };
  for (const name of wanted) visit(files.get(name)!, new Set([name]));
  return [...done];
}

function registryOf(files: readonly FileDescriptorProto[]): FileRegistry {
  const definedBy = new Map<string, string>();
  for (const file of files) {
    for (const { name } of [...file.messageType, ...file.enumType]) {
      const full = file.package === "" ? name : `${file.package}.${name}`;
      const other = definedBy.get(full);
      if (other !== undefined) throw config(`${file.name}: ${full} is defined by ${other} too`);
      definedBy.set(full, file.name);
    }
  }
  try {
    return createFileRegistry(create(FileDescriptorSetSchema, { file: [...files] }));
  } catch (cause) {
    throw config(`proto files: ${(cause as Error).message}`, cause);
  }
}

const isServing = (name: string): boolean =>
  SERVING.some((each) => name === each || name.startsWith(`${each}.`));

function entityTypesOf(types: FileRegistry): DescMessage[] {
  return [...types.files].filter((file) => !isServing(file.proto.package)).flatMap((file) => file.messages);
}

/** Columns are told apart without case: two fields whose names differ in case only cannot both be one. */
function checkNames(type: DescMessage, seen: Set<DescMessage>): void {
  if (seen.has(type)) return;
  seen.add(type);
  const names = new Map<string, DescField>();
  for (const field of type.fields) {
    const other = names.get(field.name.toLowerCase());
    if (other !== undefined) {
      throw config(
        `${placeOf(field)}: field "${field.name}" of ${type.typeName} differs from "${other.name}" in case only; columns are told apart without case`,
      );
    }
    names.set(field.name.toLowerCase(), field);
    if (field.message !== undefined) checkNames(field.message, seen);
  }
}

/** "a.proto, line 5, column 3" where the descriptors say so. */
function placeOf(field: DescField): string {
  const file: DescFile = field.parent.file;
  const path = pathOf(field.parent);
  path.push(2, field.parent.proto.field.indexOf(field.proto));
  const found = file.proto.sourceCodeInfo?.location.find(
    (location) =>
      location.path.length === path.length && location.path.every((part, index) => part === path[index]),
  );
  const name = `${file.name}.proto`;
  const [line, column] = found?.span ?? [];
  return line === undefined || column === undefined
    ? name
    : `${name}, line ${line + 1}, column ${column + 1}`;
}

/** Where a message stands among its file's descriptors, as source locations count. */
function pathOf(type: DescMessage): number[] {
  return type.parent === undefined
    ? [4, type.file.proto.messageType.indexOf(type.proto)]
    : [...pathOf(type.parent), 3, type.parent.proto.nestedType.indexOf(type.proto)];
}

/** Reflection of the other library, which encodes and decodes whole messages several times faster. */
function reflect(set: Uint8Array): protobuf.Root {
  const root = protobuf.Root.fromDescriptor(set, { keepCase: true });
  root.resolveAll();
  return root;
}

/** Names relative to their folder, "/"-separated and sorted, so that messages do not depend on the file system. */
function namesBelow(dirs: readonly string[]): string[] {
  const paths = new Map<string, string>();
  for (const dir of dirs) {
    for (const name of protoFilesBelow(dir)) {
      const path = realPath(join(dir, name), name);
      const other = paths.get(name);
      if (other !== undefined && other !== path && !readFileSync(other).equals(readFileSync(path))) {
        throw config(`${name}: found in more than one of protoDirs, with one name and unlike content`);
      }
      paths.set(name, other ?? path);
    }
  }
  return [...paths.keys()].sort();
}

function protoFilesBelow(dir: string): string[] {
  try {
    return readdirSync(dir, { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".proto"))
      .map((name) => name.split(sep).join("/"));
  } catch (cause) {
    throw config(`protoDirs: ${dir} is not a readable folder`, cause);
  }
}

function realPath(path: string, name: string): string {
  try {
    return realpathSync(path);
  } catch (cause) {
    throw config(`${name}: not readable (${errno(cause)})`, cause);
  }
}

const config = (message: string, cause?: unknown): TributaryError =>
  new TributaryError("TRB-CONFIG", message, cause === undefined ? {} : { cause });
