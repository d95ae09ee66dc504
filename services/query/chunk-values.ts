import {
  DuckDBArrayType,
  type DuckDBDataChunk,
  DuckDBListType,
  DuckDBMapType,
  DuckDBStructType,
  type DuckDBType,
  DuckDBTypeId,
  DuckDBUnionType,
  type DuckDBValue,
  DuckDBVector,
} from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { TributaryError } from "../base/errors.js";

/** Types whose values answers know how to write; nested ones of these too. */
const WRITABLE: ReadonlySet<DuckDBTypeId> = new Set([
  DuckDBTypeId.SQLNULL,
  DuckDBTypeId.BOOLEAN,
  DuckDBTypeId.VARCHAR,
  DuckDBTypeId.BLOB,
  DuckDBTypeId.BIT,
  DuckDBTypeId.UUID,
  DuckDBTypeId.ENUM,
  DuckDBTypeId.INTERVAL,
  DuckDBTypeId.DATE,
  DuckDBTypeId.TIME,
  DuckDBTypeId.TINYINT,
  DuckDBTypeId.SMALLINT,
  DuckDBTypeId.INTEGER,
  DuckDBTypeId.BIGINT,
  DuckDBTypeId.UTINYINT,
  DuckDBTypeId.USMALLINT,
  DuckDBTypeId.UINTEGER,
  DuckDBTypeId.UBIGINT,
  DuckDBTypeId.HUGEINT,
  DuckDBTypeId.UHUGEINT,
  DuckDBTypeId.BIGNUM,
  DuckDBTypeId.DECIMAL,
  DuckDBTypeId.FLOAT,
  DuckDBTypeId.DOUBLE,
  DuckDBTypeId.TIME_TZ,
  DuckDBTypeId.TIMESTAMP,
  DuckDBTypeId.TIMESTAMP_TZ,
  DuckDBTypeId.TIMESTAMP_S,
  DuckDBTypeId.TIMESTAMP_MS,
  DuckDBTypeId.TIMESTAMP_NS,
]);

/**
 * The same type with each struct's fields named by their places. The library hands out a struct's values by its
 * fields' names: those of a tuple are all empty, and one called __proto__ would be lost.
 * Errors: TRB-QUERY-CONSTRUCT for a type that answers cannot hold.
 */
export function positional(type: DuckDBType): DuckDBType {
  if (type instanceof DuckDBStructType) {
    return new DuckDBStructType(
      type.entryTypes.map((_, at) => `f${at}`),
      type.entryTypes.map(positional),
    );
  }
  if (type instanceof DuckDBListType) return new DuckDBListType(positional(type.valueType));
  if (type instanceof DuckDBArrayType) return new DuckDBArrayType(positional(type.valueType), type.length);
  if (type instanceof DuckDBMapType) {
    return new DuckDBMapType(positional(type.keyType), positional(type.valueType));
  }
  if (type instanceof DuckDBUnionType) {
    return new DuckDBUnionType(
      type.memberTags.map((_, at) => `f${at}`),
      type.memberTypes.map(positional),
    );
  }
  if (WRITABLE.has(type.typeId)) return type;
  throw new TributaryError(
    "TRB-QUERY-CONSTRUCT",
    "the answer has a column of a type that must be cast to text",
  );
}

/** The values of a chunk by column; `types` are the columns' positional types. */
export const valuesOf = (chunk: DuckDBDataChunk, types: readonly DuckDBType[]): DuckDBValue[][] =>
  types.map((type, at) =>
    DuckDBVector.create(duckdb.data_chunk_get_vector(chunk.chunk, at), chunk.rowCount, type).toArray(),
  );

/** The names, each once: a second `a` becomes `a:1`, or `a:2` should a column bear that name. */
export function uniqueNames(names: readonly string[]): string[] {
  const used = new Set(names);
  const given = new Set<string>();
  return names.map((name) => {
    let unique = name;
    for (let n = 1; given.has(unique) || (unique !== name && used.has(unique)); n++) unique = `${name}:${n}`;
    given.add(unique);
    return unique;
  });
}
