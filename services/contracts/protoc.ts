import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { type FileDescriptorProto, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { TributaryError } from "../base/errors.js";
import { packageRoot } from "../base/paths.js";

/** What every .proto may import, and the envelope: a FileDescriptorSet, written by the build. */
export const importsFile = join(packageRoot, "dist", "imports.binpb");

/** Errors are told up to this many; the rest mostly follows from them. */
const MAX_ERRORS = 10;

/** Errors: TRB-CONFIG where protoc is not built for this machine. */
export function protocBinary(): string {
  const folder = dirname(createRequire(import.meta.url).resolve("protoc/package.json"));
  const assets = JSON.parse(readFileSync(join(folder, "assets.json"), "utf8")) as readonly Asset[];
  const asset = assets.find(({ platform, arch }) => platform === process.platform && arch === process.arch);
  if (asset === undefined) {
    const machine = `${process.platform} on ${process.arch}`;
    throw config(
      `protoDirs: there is no protoc for ${machine}; expected protoDirs: [] and protoDescriptors compiled elsewhere`,
    );
  }
  return join(folder, "bin", asset.executable);
}

interface Asset {
  readonly platform: string;
  readonly arch: string;
  readonly executable: string;
}

/**
 * Compiles .proto files with protoc, imports and comments included. `files` are names below the folder of that index
 * in `dirs`; imports are looked up in each of `dirs` in turn, then in `sets` (paths of FileDescriptorSets).
 * Errors: TRB-CONFIG with file, line, column, what is wrong and the line itself.
 */
export function compileProtos(
  dirs: readonly string[],
  files: readonly string[],
  sets: readonly string[],
): FileDescriptorProto[] {
  // Links give protoc paths without the separators of its lists, and messages without this machine's folders.
  const folder = mkdtempSync(join(tmpdir(), "tributary-protoc-"));
  try {
    for (const [index, dir] of dirs.entries()) symlinkSync(resolve(dir), join(folder, `dir${index}`));
    for (const [index, set] of sets.entries()) symlinkSync(resolve(set), join(folder, `set${index}`));
    writeFileSync(
      join(folder, "arguments"),
      [
        ...dirs.map((_, index) => `--proto_path=dir${index}`),
        `--descriptor_set_in=${sets.map((_, index) => `set${index}`).join(":")}`,
        "--include_imports",
        "--include_source_info",
        "--descriptor_set_out=out",
        ...files,
      ].join("\n"),
    );
    const done = spawnSync(protocBinary(), ["@arguments"], {
      cwd: folder,
      encoding: "utf8",
      maxBuffer: 1 << 26,
    });
    if (done.error) throw config(`protoDirs: protoc cannot be run (${done.error.message})`, done.error);
    if (done.status !== 0) throw config(explain(done.stderr, dirs));
    return fromBinary(FileDescriptorSetSchema, readFileSync(join(folder, "out"))).file;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** protoc's lines "file:line:column: what", as sentences; warnings are left out. */
function explain(output: string, dirs: readonly string[]): string {
  const missing = new Set<string>();
  const errors: string[] = [];
  for (const line of output.split("\n")) {
    const [, notFound] = /^(.*): File not found\.$/.exec(line) ?? [];
    if (notFound !== undefined) missing.add(notFound);
    const [, file, at, column, what] = /^(?:dir\d+\/)?(.+?):(\d+):(\d+): (.*)$/.exec(line) ?? [];
    if (file === undefined || what!.startsWith("warning: ")) continue;
    const [, target] = /^Import "([^"]+)" was not found or had errors\.$/.exec(what!) ?? [];
    // An import that has errors of its own is told by them.
    if (target !== undefined && !missing.has(target)) continue;
    const reason = target === undefined ? what! : `import "${target}" is in none of protoDirs`;
    errors.push(`${file}, line ${at}, column ${column}: ${reason}${quoted(dirs, file, Number(at))}`);
  }
  if (errors.length === 0) return `proto files: ${output.trim() || "protoc failed without a word"}`;
  const more = errors.length - MAX_ERRORS;
  return errors.slice(0, MAX_ERRORS).join("; ") + (more > 0 ? `; and ${more} more` : "");
}

/** The line at fault, which shows the field. */
function quoted(dirs: readonly string[], file: string, line: number): string {
  const dir = dirs.find((each) => existsSync(join(each, file)));
  const text = dir === undefined ? undefined : readFileSync(join(dir, file), "utf8").split("\n")[line - 1];
  return text === undefined ? "" : ` (${text.trim().slice(0, 120)})`;
}

const config = (message: string, cause?: unknown): TributaryError =>
  new TributaryError("TRB-CONFIG", message, cause === undefined ? {} : { cause });
