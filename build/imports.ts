/**
 * Writes dist/imports.binpb: what .proto files may import without having it in a folder of their own (Google's api,
 * type, rpc and longrunning, buf/validate) and the envelope. A step of `npm run build`; the packages the files come
 * from are needed for it alone.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { file_buf_validate_validate } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { packageRoot } from "../services/base/paths.js";
import { importsFile, protocBinary } from "../services/contracts/protoc.js";

const folderOf = (name: string) => dirname(createRequire(import.meta.url).resolve(`${name}/package.json`));
const standard = join(folderOf("protoc"), "include");
const google = folderOf("google-proto-files");
const ours = join(packageRoot, "proto");
const below = (root: string, folder: string) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith(".proto"))
    .map((name) => `${folder}/${name}`);

const names = [
  ...["google/api", "google/type", "google/rpc", "google/rpc/context", "google/longrunning"].flatMap(
    (folder) => below(google, folder),
  ),
  ...below(standard, "google/protobuf"),
  ...below(ours, "tributary/v1"),
];
const folder = mkdtempSync(join(tmpdir(), "tributary-build-"));
try {
  const compiled = join(folder, "set");
  const paths = [ours, standard, google].map((path) => `-I${path}`);
  execFileSync(protocBinary(), [...paths, "--include_imports", `-o${compiled}`, ...names]);
  const { file } = fromBinary(FileDescriptorSetSchema, readFileSync(compiled));
  file.push(file_buf_validate_validate.proto);
  mkdirSync(dirname(importsFile), { recursive: true });
  writeFileSync(importsFile, toBinary(FileDescriptorSetSchema, create(FileDescriptorSetSchema, { file })));
} finally {
  rmSync(folder, { recursive: true });
}
