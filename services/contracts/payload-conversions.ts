import { type DescEnum, ScalarType } from "@bufbuild/protobuf";
import {
  type DuckDBArrayType,
  type DuckDBDecimalType,
  DuckDBListType,
  type DuckDBMapType,
  DuckDBStructType,
  type DuckDBType,
  DuckDBTypeId as Id,
  STRUCT,
  VARCHAR,
} from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";

/**
 * How values of a foreign column become those of a protobuf scalar, in SQL: exactly or not at all. What does not fit
 * is NULL, and nothing fails for it.
 */

/** An SQL expression and the type it has. */
export interface Source {
  readonly sql: string;
  readonly type: DuckDBType;
}

export interface Conversion {
  readonly sql: string;
  /** Whether a value may be NULL here which was not before: one that does not fit. */
  readonly partial: boolean;
}

/** What a value is handed over as. Unlike in a table's columns, unsigned numbers may be what they are. */
export type Target =
  | "INTEGER"
  | "UINTEGER"
  | "BIGINT"
  | "UBIGINT"
  | "FLOAT"
  | "DOUBLE"
  | "BOOLEAN"
  | "VARCHAR"
  | "BLOB"
  | "TIMESTAMPTZ"
  | "DURATION";

export const TARGETS: Readonly<Record<ScalarType, Target>> = {
  [ScalarType.DOUBLE]: "DOUBLE",
  [ScalarType.FLOAT]: "FLOAT",
  [ScalarType.INT32]: "INTEGER",
  [ScalarType.SINT32]: "INTEGER",
  [ScalarType.SFIXED32]: "INTEGER",
  [ScalarType.UINT32]: "UINTEGER",
  [ScalarType.FIXED32]: "UINTEGER",
  [ScalarType.INT64]: "BIGINT",
  [ScalarType.SINT64]: "BIGINT",
  [ScalarType.SFIXED64]: "BIGINT",
  [ScalarType.UINT64]: "UBIGINT",
  [ScalarType.FIXED64]: "UBIGINT",
  [ScalarType.BOOL]: "BOOLEAN",
  [ScalarType.STRING]: "VARCHAR",
  [ScalarType.BYTES]: "BLOB",
};

/** Bits of the magnitude, and whether there is a sign. */
const INTEGERS: Readonly<Partial<Record<Id, readonly [number, boolean]>>> = {
  [Id.TINYINT]: [7, true],
  [Id.SMALLINT]: [15, true],
  [Id.INTEGER]: [31, true],
  [Id.BIGINT]: [63, true],
  [Id.HUGEINT]: [127, true],
  [Id.UTINYINT]: [8, false],
  [Id.USMALLINT]: [16, false],
  [Id.UINTEGER]: [32, false],
  [Id.UBIGINT]: [64, false],
  [Id.UHUGEINT]: [128, false],
};
const TARGET_IDS: Readonly<Partial<Record<Target, Id>>> = {
  INTEGER: Id.INTEGER,
  UINTEGER: Id.UINTEGER,
  BIGINT: Id.BIGINT,
  UBIGINT: Id.UBIGINT,
  FLOAT: Id.FLOAT,
  DOUBLE: Id.DOUBLE,
  BOOLEAN: Id.BOOLEAN,
  VARCHAR: Id.VARCHAR,
  BLOB: Id.BLOB,
  TIMESTAMPTZ: Id.TIMESTAMP_TZ,
  DURATION: Id.BIGINT,
};

const isInteger = ({ typeId }: DuckDBType): boolean => INTEGERS[typeId] !== undefined;
const isReal = ({ typeId }: DuckDBType): boolean =>
  typeId === Id.FLOAT || typeId === Id.DOUBLE || typeId === Id.DECIMAL;

const total = (sql: string): Conversion => ({ sql, partial: false });
const partial = (sql: string): Conversion => ({ sql, partial: true });
const tryCast = (sql: string, type: string): string => `TRY_CAST(${sql} AS ${type})`;

/** Undefined where no value of the source's type is one of the target's. */
export function convert(source: Source, target: Target): Conversion | undefined {
  const { sql, type } = source;
  if (type.typeId === TARGET_IDS[target]) return total(sql);
  switch (target) {
    case "INTEGER":
    case "UINTEGER":
    case "BIGINT":
    case "UBIGINT":
      return integer(source, target);
    case "FLOAT":
    case "DOUBLE":
      return real(source, target);
    case "BOOLEAN":
      if (isInteger(type)) return partial(`CASE ${sql} WHEN 0 THEN false WHEN 1 THEN true END`);
      return type.typeId === Id.VARCHAR ? partial(tryCast(sql, target)) : undefined;
    case "VARCHAR":
      return text(source);
    case "BLOB":
      // As in proto3 JSON: base64, of either alphabet, padded or not.
      if (type.typeId !== Id.VARCHAR) return undefined;
      return partial(
        `TRY(from_base64(translate(rtrim(${sql}, '='), '-_', '+/') || repeat('=', (-strlen(rtrim(${sql}, '='))) & 3)))`,
      );
    case "TIMESTAMPTZ":
      return instant(source);
    case "DURATION":
      return duration(source);
  }
}

const DIGITS = literal("\\s*[+-]?[0-9]+(\\.0*)?\\s*");

function integer({ sql, type }: Source, target: Target): Conversion | undefined {
  const from = INTEGERS[type.typeId];
  if (from !== undefined) {
    const [bits, signed] = INTEGERS[TARGET_IDS[target]!]!;
    const fits = from[0] <= bits && (signed || !from[1]);
    return fits ? total(`${sql}::${target}`) : partial(tryCast(sql, target));
  }
  if (type.typeId === Id.DECIMAL && (type as DuckDBDecimalType).scale === 0)
    return partial(tryCast(sql, target));
  // A cast alone would round.
  if (isReal(type)) return partial(`CASE WHEN ${sql} = trunc(${sql}) THEN ${tryCast(sql, target)} END`);
  if (type.typeId !== Id.VARCHAR) return undefined;
  return partial(`CASE WHEN regexp_full_match(${sql}, ${DIGITS}) THEN ${tryCast(sql, target)} END`);
}

function real({ sql, type }: Source, target: Target): Conversion | undefined {
  if (type.typeId === Id.FLOAT) return total(`${sql}::${target}`);
  if (isInteger(type) || isReal(type)) return partial(tryCast(sql, target));
  if (type.typeId !== Id.VARCHAR) return undefined;
  // A text that says more than the type holds is read as infinite.
  const value = tryCast(tryCast(sql, "DOUBLE"), target);
  return partial(`CASE WHEN NOT isinf(${value}) OR contains(lower(${sql}), 'inf') THEN ${value} END`);
}

const TEXTS: ReadonlySet<Id> = new Set([
  Id.BOOLEAN,
  Id.FLOAT,
  Id.DOUBLE,
  Id.DECIMAL,
  Id.ENUM,
  Id.UUID,
  Id.DATE,
  Id.TIME,
  Id.TIMESTAMP,
  Id.TIMESTAMP_S,
  Id.TIMESTAMP_MS,
  Id.TIMESTAMP_NS,
  Id.TIMESTAMP_TZ,
]);

/** Bytes stay bytes: whoever takes them looks whether they are UTF-8. */
function text({ sql, type }: Source): Conversion | undefined {
  if (type.typeId === Id.BLOB) return total(sql);
  return isInteger(type) || TEXTS.has(type.typeId) ? total(`${sql}::VARCHAR`) : undefined;
}

/** Nanoseconds rounded down to microseconds, as readers do, where a cast rounds to the nearest. */
const microsOf = (sql: string): string => {
  const nanos = `epoch_ns(${sql})`;
  // Infinite ones have nanoseconds too, which say nothing, and arithmetic on those next to them may fail.
  return `TRY(CASE WHEN isfinite(${sql}) THEN make_timestamp((${nanos} - (${nanos} % 1000 + 1000) % 1000) // 1000) END)`;
};

/**
 * Times without a zone are of UTC, and stay TIMESTAMP: it lies in memory as TIMESTAMPTZ does, and what has to do with
 * zones fails at the borders of the type, also where it only tries. Years are not looked at.
 */
function instant({ sql, type }: Source): Conversion | undefined {
  switch (type.typeId) {
    case Id.TIMESTAMP:
      return total(sql);
    case Id.TIMESTAMP_S:
    case Id.TIMESTAMP_MS:
    case Id.DATE:
      return partial(tryCast(sql, "TIMESTAMP"));
    case Id.TIMESTAMP_NS:
      return partial(microsOf(sql));
    case Id.VARCHAR:
      return partial(`TRY(${tryCast(sql, "TIMESTAMPTZ")})`);
    default:
      return undefined;
  }
}

const SECONDS = literal("-?[0-9]{1,12}(\\.[0-9]{1,9})?s");

/** Microseconds: of a number these, of a text what proto3 JSON says ("1.5s"), of an interval that has no months. */
function duration({ sql, type }: Source): Conversion | undefined {
  if (type.typeId === Id.INTERVAL) {
    return partial(
      `CASE WHEN datepart('year', ${sql}) = 0 AND datepart('month', ${sql}) = 0 THEN TRY(epoch_us(${sql})) END`,
    );
  }
  if (type.typeId === Id.VARCHAR) {
    const seconds = `${tryCast(`rtrim(${sql}, 's')`, "DECIMAL(21,9)")}`;
    return partial(
      `CASE WHEN regexp_full_match(${sql}, ${SECONDS}) THEN ${tryCast(`floor(${seconds} * 1000000)`, "BIGINT")} END`,
    );
  }
  return isInteger(type) ? integer({ sql, type }, "BIGINT") : undefined;
}

/** An enum's number, of its value's name or of the number itself; a closed enum has its own values alone. */
export function convertEnum({ sql, type }: Source, desc: DescEnum): Conversion | undefined {
  const known = (number: string): string =>
    desc.open
      ? number
      : `CASE WHEN ${number} IN (${desc.values.map((value) => value.number).join(", ")}) THEN ${number} END`;
  if (isInteger(type)) {
    const { sql: number, partial: may } = integer({ sql, type }, "INTEGER")!;
    return { sql: known(number), partial: may || !desc.open };
  }
  if (type.typeId !== Id.VARCHAR && type.typeId !== Id.ENUM) return undefined;
  const name = type.typeId === Id.ENUM ? `${sql}::VARCHAR` : sql;
  const names = desc.values.map((value) => literal(value.name)).join(", ");
  const numbers = desc.values.map((value) => value.number).join(", ");
  // Several times as fast as a CASE of the names.
  const named = `([${numbers}]::INTEGER[])[enum_code(${tryCast(name, `ENUM(${names})`)})::INTEGER + 1]`;
  const digits = `CASE WHEN regexp_full_match(${name}, '-?[0-9]+') THEN ${known(tryCast(name, "INTEGER"))} END`;
  return partial(`coalesce(${named}, ${digits})`);
}

/** A list, of the source or of the JSON text that it is; of what is `json` the elements are JSON again. */
export function listOf(
  { sql, type }: Source,
  json: boolean,
): (Conversion & { readonly type: DuckDBListType }) | undefined {
  switch (type.typeId) {
    case Id.LIST:
      return { ...total(sql), type: type as DuckDBListType };
    case Id.ARRAY: {
      const list = new DuckDBListType((type as DuckDBArrayType).valueType);
      return { ...total(`${sql}::${list}`), type: list };
    }
    case Id.VARCHAR: {
      const list = tryCast(tryCast(sql, "JSON"), json ? "JSON[]" : "VARCHAR[]");
      return { ...partial(list), type: new DuckDBListType(VARCHAR) };
    }
    default:
      return undefined;
  }
}

const TEXT_ENTRY = STRUCT({ key: VARCHAR, value: VARCHAR });

/** Entries of a map as a list of structs of two, whose type is `type`; a `map` has each key once. */
export function entriesOf(
  { sql, type }: Source,
  json: boolean,
): (Conversion & { readonly type: DuckDBStructType; readonly map: boolean }) | undefined {
  switch (type.typeId) {
    case Id.MAP: {
      const { keyType, valueType } = type as DuckDBMapType;
      const entry = new DuckDBStructType(["key", "value"], [keyType, valueType]);
      return { ...total(`map_entries(${sql})`), type: entry, map: true };
    }
    case Id.LIST: {
      const entry = (type as DuckDBListType).valueType;
      if (!(entry instanceof DuckDBStructType) || entry.entryNames.join() !== "key,value") return undefined;
      return { ...total(sql), type: entry, map: false };
    }
    case Id.VARCHAR: {
      const map = tryCast(tryCast(sql, "JSON"), `MAP(VARCHAR, ${json ? "JSON" : "VARCHAR"})`);
      return { ...partial(`map_entries(${map})`), type: TEXT_ENTRY, map: false };
    }
    default:
      return undefined;
  }
}
