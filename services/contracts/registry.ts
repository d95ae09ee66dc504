import { readdirSync, readFileSync, realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, sep } from "node:path";
import type { FileRegistry } from "@bufbuild/protobuf";
import protobuf from "protobufjs";
import { errno, TributaryError } from "../base/errors.js";
import { packageRoot } from "../base/paths.js";
import { describeFiles, type ProtoSource } from "./descriptors.js";

/** The parser takes the name for its messages, and for `filename` of what it finds, from this property. */
const parser = protobuf.parse as typeof protobuf.parse & { filename?: string | null };

/** Where the envelope itself comes from, whatever folders are configured. */
const ownProtos = join(packageRoot, "proto");

/** Imports that protobufjs knows by name; the rest of google/protobuf lies as files in its package. */
const bundled = (name: string): protobuf.INamespace | null => protobuf.common.get(name);

/**
 * Every message, enum and map that the .proto files of the configured folders define, resolved at run time: a new
 * product domain is a new file, not new code. Binary decoding uses the protobufjs types; proto3 JSON uses
 * `jsonRegistry`, built from the very same reflection, so that the two agree.
 */
export class ProtoRegistry {
  readonly root: protobuf.Root;
  /** The same types for @bufbuild/protobuf, well-known types included. */
  readonly jsonRegistry: FileRegistry;
  private readonly entities: ReadonlyMap<string, protobuf.Type>;

  private constructor(root: protobuf.Root, jsonRegistry: FileRegistry, entities: Map<string, protobuf.Type>) {
    this.root = root;
    this.jsonRegistry = jsonRegistry;
    this.entities = entities;
  }

  /**
   * Parses every .proto below `dirs`. Imports are looked up in each of `dirs` in turn, then among Google's
   * well-known files. Field names are kept as written (snake_case); comments are kept.
   * Errors: TRB-CONFIG, naming the file (relative to its folder) and, where it is known, the line.
   */
  static load(dirs: readonly string[]): ProtoRegistry {
    const loader = new Loader(dirs);
    for (const dir of dirs) {
      for (const name of protoFilesBelow(dir)) loader.add(name, join(dir, name));
    }
    loader.addOwn();
    loader.resolve();
    const entities = new Map<string, protobuf.Type>();
    for (const source of loader.sources.values()) {
      if (source.package === "tributary" || source.package.startsWith("tributary.")) continue;
      for (const object of source.objects) {
        if (object instanceof protobuf.Type) entities.set(nameOf(object), object);
      }
    }
    return new ProtoRegistry(loader.root, loader.describe(), entities);
  }

  /** The payload message of that full name: a top-level message outside tributary.* and google.*. */
  entityType(name: string): protobuf.Type | undefined {
    return this.entities.get(name);
  }

  /** Full names of all payload messages, sorted. */
  entityTypes(): readonly string[] {
    return [...this.entities.keys()].sort();
  }

  /** Any message or enum by its full name. */
  lookup(fullName: string): protobuf.Type | protobuf.Enum | undefined {
    const found = this.root.lookup(fullName, [protobuf.Type, protobuf.Enum]);
    return found instanceof protobuf.Type || found instanceof protobuf.Enum ? found : undefined;
  }
}

/** "scm.v1.File" of the reflected ".scm.v1.File". */
export const nameOf = (object: protobuf.ReflectionObject): string => object.fullName.replace(/^\./, "");

class Loader {
  readonly root = new protobuf.Root();
  readonly sources = new Map<string, ProtoSource>();
  private readonly dirs: readonly string[];
  private readonly texts = new Map<string, string>();
  private readonly paths = new Map<string, string>();
  private readonly bundled = new Set<string>();

  constructor(dirs: readonly string[]) {
    this.dirs = dirs;
  }

  add(name: string, path: string): void {
    const real = realPath(path, name);
    const known = this.paths.get(name);
    if (known === real) return;
    if (known !== undefined) {
      throw new TributaryError("TRB-CONFIG", `${name}: found in more than one of protoDirs, with one name`);
    }
    this.paths.set(name, real);
    const text = readFileSync(real, "utf8");
    this.texts.set(name, text);
    const bare = text.replace(/\/\*[\s\S]*?\*\/|\/\/[^\n]*/g, " ");
    if (!name.startsWith("google/protobuf/") && !/^\s*syntax\s*=\s*(["'])proto3\1\s*;/.test(bare)) {
      throw new TributaryError("TRB-CONFIG", `${name}, line 1: expected syntax = "proto3"`);
    }
    const parsed = this.parse(name, text);
    const imports = [...(parsed.imports ?? []), ...(parsed.weakImports ?? [])];
    for (const target of imports) this.import(name, target);
    if (name.startsWith("google/protobuf/")) return;
    const objects = this.objectsOf(name, parsed.package ?? "");
    this.sources.set(name, { name, package: parsed.package ?? "", imports, objects });
  }

  /** The envelope, unless a configured folder already holds it. */
  addOwn(): void {
    for (const name of ["tributary/v1/change_event.proto", "tributary/v1/bus.proto"]) {
      if (!this.paths.has(name)) this.add(name, join(ownProtos, ...name.split("/")));
    }
  }

  /** Binds every field to its type, so that an unknown one is told at start and not at the first event. */
  resolve(): void {
    for (const source of this.sources.values()) {
      for (const object of source.objects) {
        try {
          if (object instanceof protobuf.Namespace) object.resolveAll();
        } catch (cause) {
          const reason = cause instanceof Error ? cause.message : "cannot be resolved";
          const missing = /^no such [^']*'([^']+)'/.exec(reason);
          const line = this.lineOf(source.name, missing?.[1] ?? object.name);
          throw new TributaryError("TRB-CONFIG", `${source.name}, line ${line}: ${reason}`, { cause });
        }
      }
    }
    try {
      this.root.resolveAll();
    } catch (cause) {
      throw new TributaryError("TRB-CONFIG", `proto files: ${(cause as Error).message}`, { cause });
    }
  }

  /** The same for JSON; fails where a field uses one of Google's messages that JSON support does not cover. */
  describe(): FileRegistry {
    try {
      return describeFiles([...this.sources.values()]);
    } catch (cause) {
      throw new TributaryError("TRB-CONFIG", `proto files: ${(cause as Error).message}`, { cause });
    }
  }

  private parse(name: string, text: string): protobuf.IParserResult {
    try {
      parser.filename = name;
      return parser(text, this.root, { keepCase: true, alternateCommentMode: true });
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : "not readable";
      const duplicate = /duplicate name '([^']+)'/.exec(reason);
      const where = reason.includes(name)
        ? ""
        : duplicate
          ? `${name}, line ${this.lineOf(name, duplicate[1]!)}: `
          : `${name}: `;
      throw new TributaryError("TRB-CONFIG", where + reason, { cause });
    } finally {
      parser.filename = null;
    }
  }

  private import(from: string, target: string): void {
    if (this.paths.has(target) || this.bundled.has(target)) return;
    const known = bundled(target);
    if (known) {
      this.bundled.add(target);
      this.root.addJSON(known.nested ?? {});
      return;
    }
    const vendored = target.startsWith("google/") ? [googleProtos()] : [];
    for (const dir of [...this.dirs, ownProtos, ...vendored]) {
      const path = join(dir, ...target.split("/"));
      if (isFile(path)) {
        this.add(target, path);
        return;
      }
    }
    const line = this.lineOf(from, target);
    throw new TributaryError(
      "TRB-CONFIG",
      `${from}, line ${line}: import "${target}" is in none of protoDirs`,
    );
  }

  private objectsOf(name: string, packageName: string): protobuf.ReflectionObject[] {
    const namespace = packageName === "" ? this.root : this.root.lookup(packageName);
    if (!(namespace instanceof protobuf.Namespace)) return [];
    return namespace.nestedArray.filter((object) => object.filename === name);
  }

  private lineOf(name: string, word: string): number {
    const lines = (this.texts.get(name) ?? "").split("\n");
    return (
      1 +
      Math.max(
        0,
        lines.findIndex((line) => line.includes(word)),
      )
    );
  }
}

/** Names relative to `dir`, "/"-separated and sorted, so that messages do not depend on the file system. */
function protoFilesBelow(dir: string): string[] {
  try {
    return readdirSync(dir, { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".proto"))
      .map((name) => name.split(sep).join("/"))
      .sort();
  } catch (cause) {
    throw new TributaryError("TRB-CONFIG", `protoDirs: ${dir} is not a readable folder`, { cause });
  }
}

function realPath(path: string, name: string): string {
  try {
    return realpathSync(path);
  } catch (cause) {
    throw new TributaryError("TRB-CONFIG", `${name}: not readable (${errno(cause)})`, { cause });
  }
}

function isFile(path: string): boolean {
  try {
    realpathSync(path);
    return true;
  } catch {
    return false;
  }
}

/** The folder of the protobufjs package, which ships the google/protobuf files it does not bundle. */
const googleProtos = (): string => dirname(createRequire(import.meta.url).resolve("protobufjs/package.json"));
