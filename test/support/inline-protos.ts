import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { ProtoRegistry } from "../../services/contracts/registry.js";

/** Writes .proto texts by name below a folder. */
export function writeProtos(folder: string, files: Readonly<Record<string, string>>): void {
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), text);
  }
}

/** The registry of .proto texts, by file name. */
export function inlineProtos(files: Readonly<Record<string, string>>): ProtoRegistry {
  const folder = mkdtempSync(join(tmpdir(), "protos-"));
  try {
    writeProtos(folder, files);
    return ProtoRegistry.load([folder]);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
