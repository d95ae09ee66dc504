import type { DescMessage } from "@bufbuild/protobuf";
import { DuckDBDataChunk, type DuckDBValue } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { PayloadDecoder } from "../../services/contracts/payload-columns.js";

/** Decodes several payloads as one chunk; undefined for those that do not decode. */
export function payloadRows(
  type: DescMessage,
  payloads: readonly Uint8Array[],
): (Record<string, unknown> | undefined)[] {
  const decoder = new PayloadDecoder(type);
  for (const { writer, nullable } of decoder.columns) writer.begin(payloads.length, nullable);
  const fine = payloads.map((payload, row) => {
    const framed = Buffer.concat([Buffer.from("xx"), payload, Buffer.from("yy")]);
    return decoder.decode(framed, 2, 2 + payload.length, row);
  });
  const chunk = DuckDBDataChunk.create(
    decoder.columns.map((column) => column.type),
    payloads.length,
  );
  const columns = decoder.columns.map(({ writer }, index) => {
    writer.flush(duckdb.data_chunk_get_vector(chunk.chunk, index), payloads.length);
    return chunk.getColumnValues(index).map(plain);
  });
  return fine.map((good, row) =>
    good ? Object.fromEntries(decoder.columns.map(({ name }, i) => [name, columns[i]![row]])) : undefined,
  );
}

/** DuckDB's value in the words of `expected`. */
export function plain(value: DuckDBValue): unknown {
  if (value === null || typeof value === "string" || typeof value === "boolean") return value;
  if (typeof value === "bigint" || typeof value === "number") return String(value);
  if ("bytes" in value) return Buffer.from(value.bytes as Uint8Array).toString("hex");
  if ("micros" in value) return String(value.micros);
  if ("items" in value) return (value.items as DuckDBValue[]).map(plain);
  if ("entries" in value) {
    const { entries } = value as { entries: unknown };
    if (Array.isArray(entries)) {
      return entries
        .map(({ key, value: of }) => [plain(key as DuckDBValue), plain(of as DuckDBValue)])
        .sort(byKey);
    }
    return Object.fromEntries(
      Object.entries(entries as object).map(([k, v]) => [k, plain(v as DuckDBValue)]),
    );
  }
  return String(value);
}

export const byKey = (a: unknown[], b: unknown[]): number => (String(a[0]) < String(b[0]) ? -1 : 1);
