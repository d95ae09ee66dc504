import {
  type DuckDBDecimalType,
  type DuckDBListType,
  type DuckDBMapType,
  type DuckDBStructType,
  type DuckDBType,
  DuckDBTypeId,
} from "@duckdb/node-api";
import { identifier } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { Column } from "./types.js";

/** A type of the Delta schema (Delta protocol, "Schema Serialization Format"). */
export type DeltaType =
  | string
  | { readonly type: "struct"; readonly fields: readonly DeltaField[] }
  | { readonly type: "array"; readonly elementType: DeltaType; readonly containsNull: boolean }
  | {
      readonly type: "map";
      readonly keyType: DeltaType;
      readonly valueType: DeltaType;
      readonly valueContainsNull: boolean;
    };

export interface DeltaField {
  readonly name: string;
  readonly type: DeltaType;
  readonly nullable: boolean;
  readonly metadata: Readonly<Record<string, string>>;
}

const PRIMITIVES: readonly (readonly [DuckDBTypeId, string, string])[] = [
  [DuckDBTypeId.VARCHAR, "string", "VARCHAR"],
  [DuckDBTypeId.BLOB, "binary", "BLOB"],
  [DuckDBTypeId.BOOLEAN, "boolean", "BOOLEAN"],
  [DuckDBTypeId.TINYINT, "byte", "TINYINT"],
  [DuckDBTypeId.SMALLINT, "short", "SMALLINT"],
  [DuckDBTypeId.INTEGER, "integer", "INTEGER"],
  [DuckDBTypeId.BIGINT, "long", "BIGINT"],
  [DuckDBTypeId.FLOAT, "float", "FLOAT"],
  [DuckDBTypeId.DOUBLE, "double", "DOUBLE"],
  [DuckDBTypeId.DATE, "date", "DATE"],
  [DuckDBTypeId.TIMESTAMP_TZ, "timestamp", "TIMESTAMP WITH TIME ZONE"],
];

/** Undefined for a type that Delta does not have (unsigned, hugeint, local timestamp, interval, …). */
export function deltaTypeOf(type: DuckDBType): DeltaType | undefined {
  const primitive = PRIMITIVES.find(([id]) => id === type.typeId);
  if (primitive !== undefined) return primitive[1];
  switch (type.typeId) {
    case DuckDBTypeId.DECIMAL: {
      const { width, scale } = type as DuckDBDecimalType;
      return `decimal(${width},${scale})`;
    }
    case DuckDBTypeId.LIST: {
      const elementType = deltaTypeOf((type as DuckDBListType).valueType);
      return elementType === undefined ? undefined : { type: "array", elementType, containsNull: true };
    }
    case DuckDBTypeId.MAP: {
      const keyType = deltaTypeOf((type as DuckDBMapType).keyType);
      const valueType = deltaTypeOf((type as DuckDBMapType).valueType);
      if (keyType === undefined || valueType === undefined) return undefined;
      return { type: "map", keyType, valueType, valueContainsNull: true };
    }
    case DuckDBTypeId.STRUCT: {
      const { entryNames, entryTypes } = type as DuckDBStructType;
      const fields: DeltaField[] = [];
      for (const [index, name] of entryNames.entries()) {
        const field = deltaTypeOf(entryTypes[index]!);
        if (field === undefined) return undefined;
        fields.push({ name, type: field, nullable: true, metadata: {} });
      }
      return { type: "struct", fields };
    }
    default:
      return undefined;
  }
}

/** DuckDB's spelling of a Delta type. Errors: TRB-TABLE-UNSUPPORTED. */
export function duckTypeOf(type: DeltaType): string {
  if (typeof type === "string") {
    const decimal = /^decimal\((\d+),\s*(\d+)\)$/.exec(type);
    if (decimal !== null) return `DECIMAL(${decimal[1]},${decimal[2]})`;
    const primitive = PRIMITIVES.find(([, delta]) => delta === type);
    if (primitive !== undefined) return primitive[2];
    throw new TributaryError("TRB-TABLE-UNSUPPORTED", `column type ${type} is not known`);
  }
  switch (type.type) {
    case "array":
      return `${duckTypeOf(type.elementType)}[]`;
    case "map":
      return `MAP(${duckTypeOf(type.keyType)}, ${duckTypeOf(type.valueType)})`;
    case "struct":
      return `STRUCT(${type.fields.map((f) => `${identifier(f.name)} ${duckTypeOf(f.type)}`).join(", ")})`;
  }
}

/** One column of a table to be made. */
export interface ColumnSpec {
  readonly name: string;
  readonly type: DeltaType;
  readonly nullable: boolean;
  readonly description?: string;
}

export function schemaString(columns: readonly ColumnSpec[]): string {
  const fields = columns.map(
    ({ name, type, nullable, description }): DeltaField => ({
      name,
      type,
      nullable,
      metadata: description === undefined ? {} : { comment: description },
    }),
  );
  return JSON.stringify({ type: "struct", fields });
}

export function columnsOf(schema: string): Column[] {
  const { fields } = JSON.parse(schema) as { fields: DeltaField[] };
  return fields.map(({ name, type, metadata }) => ({
    name,
    type: duckTypeOf(type),
    ...(metadata.comment === undefined ? {} : { description: metadata.comment }),
  }));
}
