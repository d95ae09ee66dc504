import type { DescMessage, FileRegistry } from "@bufbuild/protobuf";
import type { DuckDBConnection } from "@duckdb/node-api";
import { chunksOf } from "../../services/base/duckdb.js";
import { Feed } from "../../services/columns/feed.js";
import { PayloadDecoder } from "../../services/contracts/payload-columns.js";
import { PayloadEncoder } from "../../services/contracts/payload-encoder.js";
import { PayloadRows } from "../../services/contracts/payload-rows.js";
import { plain } from "./payload-rows.js";

/** Every row of a relation as a payload, or as what it was refused with. Written one behind the other. */
export async function encodedRows(
  connection: DuckDBConnection,
  relation: string,
  encoder: PayloadEncoder,
): Promise<(Buffer | string)[]> {
  const out = new PayloadRows(Buffer.from("prefix"));
  const rows: (Buffer | string)[] = [];
  const sql = `SELECT 'before', ${encoder.columns.join(", ")} FROM ${relation}`;
  for await (const chunk of chunksOf(connection, sql)) {
    encoder.take(chunk, 1);
    for (let first = 0; first < chunk.rowCount; first = out.end) {
      encoder.encode(first, out);
      for (let row = first; row < out.end; row++) {
        const bytes = Buffer.from(out.bytes.subarray(out.from(row), out.ends[row]));
        if (`${out.whole(row)}` !== `prefix${bytes}`) throw new Error("the prefix is lost");
        rows.push(out.refusal(row)?.message ?? bytes);
      }
    }
    encoder.release();
  }
  return rows;
}

/** Payloads into columns and back. */
export async function thereAndBack(
  connection: DuckDBConnection,
  name: string,
  type: DescMessage,
  types: FileRegistry,
): Promise<{
  (payloads: readonly Uint8Array[]): Promise<(Buffer | string)[]>;
  /** Of the last payloads: what their columns say that a decoder makes of them. */
  mirrored(): Promise<Record<string, unknown>[]>;
}> {
  const decoder = new PayloadDecoder(type);
  const feed = Feed.register(connection, name, decoder.columns);
  const relation = `${name}()`;
  feed.use({ rows: 0, fill: () => undefined });
  const columns = decoder.columns.map((column) => [column.name, `"${column.name}"`]);
  const encoder = await PayloadEncoder.bind(connection, relation, type, types, Object.fromEntries(columns));
  const names = encoder.columns.map((_, at) => `c${at}`);
  const mirrors = [...encoder.decoded(names)].filter(([, { sql }]) => sql !== undefined);
  const back = (payloads: readonly Uint8Array[]) => {
    feed.use({
      rows: payloads.length,
      fill(start, rows) {
        for (let row = 0; row < rows; row++) {
          const bytes = Buffer.from(payloads[start + row]!);
          if (!decoder.decode(bytes, 0, bytes.length, row)) throw new Error("a payload does not decode");
        }
      },
    });
    return encodedRows(connection, relation, encoder);
  };
  const mirrored = async () => {
    const taken = encoder.columns.map((sql, at) => `${sql} AS c${at}`).join(", ");
    await connection.run(`CREATE OR REPLACE TEMP TABLE taken AS SELECT ${taken} FROM ${relation}`);
    const list = mirrors.map(([, { sql }]) => sql);
    const read = await connection.runAndReadAll(`SELECT ${list.join(", ")} FROM taken`);
    for (const [at, [field, { type }]] of mirrors.entries()) {
      if (read.columnType(at).toString() !== type.toString())
        throw new Error(`${field}: ${read.columnType(at)}`);
    }
    return read
      .getRows()
      .map((row) => Object.fromEntries(mirrors.map(([field], at) => [field, plain(row[at]!)])));
  };
  return Object.assign(back, { mirrored });
}
