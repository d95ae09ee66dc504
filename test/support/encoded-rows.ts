import type { DescMessage, FileRegistry } from "@bufbuild/protobuf";
import type { DuckDBConnection } from "@duckdb/node-api";
import { chunksOf } from "../../services/base/duckdb.js";
import { Feed } from "../../services/columns/feed.js";
import { PayloadDecoder } from "../../services/contracts/payload-columns.js";
import { PayloadEncoder } from "../../services/contracts/payload-encoder.js";
import { WireWriter } from "../../services/contracts/wire-writer.js";

/** Every row of a relation as a payload, or as what it was refused with. Written one behind the other. */
export async function encodedRows(
  connection: DuckDBConnection,
  relation: string,
  encoder: PayloadEncoder,
): Promise<(Buffer | string)[]> {
  const out = new WireWriter(1);
  const rows: (Buffer | string)[] = [];
  const sql = `SELECT 'before', ${encoder.columns.join(", ")} FROM ${relation}`;
  for await (const chunk of chunksOf(connection, sql)) {
    encoder.take(chunk, 1);
    for (let row = 0; row < chunk.rowCount; row++) {
      const start = out.length;
      const refusal = encoder.encode(row, out);
      rows.push(refusal?.message ?? Buffer.from(out.view().subarray(start)));
      if (refusal !== undefined && out.length !== start) throw new Error("a refused row left bytes");
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
): Promise<(payloads: readonly Uint8Array[]) => Promise<(Buffer | string)[]>> {
  const decoder = new PayloadDecoder(type);
  const feed = Feed.register(connection, name, decoder.columns);
  const relation = `${name}()`;
  feed.use({ rows: 0, fill: () => undefined });
  const columns = decoder.columns.map((column) => [column.name, `"${column.name}"`]);
  const encoder = await PayloadEncoder.bind(connection, relation, type, types, Object.fromEntries(columns));
  return (payloads) => {
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
}
