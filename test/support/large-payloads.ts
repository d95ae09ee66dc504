import { createHash, randomBytes } from "node:crypto";
import { Duck } from "../../services/base/duckdb.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { DeltaTable } from "../../services/table/delta-table.js";
import { withScan } from "../../services/table/scan.js";

/** Payloads that are too large for a stream, and what becomes of them. */

export const MB = 1_000_000;
export const SIZES = { "0.9": 0.9 * MB, "1.1": 1.1 * MB, "9": 9 * MB, "60": 60 * MB } as const;

export const sha256 = (bytes: Uint8Array): Buffer => createHash("sha256").update(bytes).digest();

/** A scm.v1.File whose path is hexadecimal digits; of so many bytes, about. */
export function payloadOf(bytes: number): Buffer {
  const digits = bytes - 5;
  const text = randomBytes(Math.ceil(digits / 2))
    .toString("hex")
    .slice(0, digits);
  return Buffer.concat([Buffer.from([0x0a, ...varint(digits)]), Buffer.from(text, "latin1")]);
}

export function varint(value: number): number[] {
  const out: number[] = [];
  for (let rest = value; ; rest >>>= 7) {
    if (rest < 0x80) return [...out, rest];
    out.push((rest & 0x7f) | 0x80);
  }
}

/** SHA-256 in hex of the path of such a payload: the last bytes, after tag and length. */
export function digestOfPath(payload: Buffer): string {
  const start = payload.findIndex((byte, i) => i > 0 && byte < 0x80) + 1;
  return sha256(payload.subarray(start)).toString("hex");
}

/** The same of the paths that the refined table shows, by entity. */
export async function refinedDigests(store: ObjectStore): Promise<Map<string, string>> {
  const duck = await Duck.create({ memoryBytes: 1024 * 1024 * 1024 });
  try {
    const table = await DeltaTable.open(store, "refined/scm/files", duck, { checkpointEvery: 1000 });
    if (table === undefined) return new Map();
    const rows = await withScan(table, table.snapshot, { columns: ["entity_id", "path"] }, (sql) =>
      duck.with(async (connection) =>
        (await connection.runAndReadAll(`SELECT entity_id, sha256(path) FROM (${sql})`)).getRows(),
      ),
    );
    return new Map(rows as [string, string][]);
  } finally {
    duck.close();
  }
}
