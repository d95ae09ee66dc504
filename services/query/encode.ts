import {
  DuckDBArrayType,
  DuckDBArrayValue,
  DuckDBBitValue,
  DuckDBBlobValue,
  type DuckDBDataChunk,
  DuckDBDateValue,
  DuckDBDecimalValue,
  DuckDBIntervalValue,
  DuckDBListType,
  DuckDBListValue,
  DuckDBMapType,
  DuckDBMapValue,
  DuckDBStructType,
  DuckDBStructValue,
  DuckDBTimestampMillisecondsValue,
  DuckDBTimestampNanosecondsValue,
  DuckDBTimestampSecondsValue,
  DuckDBTimestampTZValue,
  DuckDBTimestampValue,
  DuckDBTimeTZValue,
  DuckDBTimeValue,
  type DuckDBType,
  DuckDBTypeId,
  DuckDBUnionType,
  DuckDBUnionValue,
  DuckDBUUIDValue,
  type DuckDBValue,
} from "@duckdb/node-api";
import { positional, uniqueNames, valuesOf } from "./chunk-values.js";
import type { AnswerFormat } from "./protocol.js";

/** A value as it stands in an answer. Objects are kept as entries, so that no key is special to JavaScript. */
type Plain = null | boolean | number | string | bigint | readonly Plain[] | PlainObject;
class PlainObject {
  constructor(readonly entries: readonly (readonly [string, Plain])[]) {}
}

/**
 * Turns rows into text: one row at a time, without the brackets or commas between rows.
 * 64-bit and larger integers and decimals are strings unless `numbers` is "js"; NaN and infinities are strings;
 * times with a zone are ISO 8601 in UTC; blobs are base64; durations ISO 8601; maps and structs are objects, tuples
 * (structs without names) lists.
 */
export class RowEncoder {
  /** The columns' names, each once. */
  readonly names: readonly string[];
  private readonly types: readonly DuckDBType[];
  private readonly positionalTypes: readonly DuckDBType[];
  private readonly format: AnswerFormat;
  private readonly exact: boolean;

  /** Errors: TRB-QUERY-CONSTRUCT for a column whose type an answer cannot hold. */
  constructor(
    names: readonly string[],
    types: readonly DuckDBType[],
    format: AnswerFormat,
    numbers: "exact" | "js",
  ) {
    this.names = uniqueNames(names);
    this.types = types;
    this.positionalTypes = types.map(positional);
    this.format = format;
    this.exact = numbers === "exact";
  }

  /** What goes before the first row; CSV has a header. */
  head(): string {
    return this.format === "csv" ? `${this.names.map(csvText).join(",")}\r\n` : "";
  }

  rows(chunk: DuckDBDataChunk): string {
    const columns = valuesOf(chunk, this.positionalTypes).map((values, at) => {
      const type = this.types[at]!;
      return values.map((value) => this.text(plainOf(value, type, this.exact)));
    });
    const keys = this.format === "ndjson" ? this.names.map((name) => `${JSON.stringify(name)}:`) : [];
    const lines: string[] = [];
    for (let row = 0; row < chunk.rowCount; row++) {
      const cells = columns.map((values) => values[row]!);
      if (this.format === "csv") lines.push(`${cells.join(",")}\r\n`);
      else if (this.format === "json") lines.push(`[${cells.join(",")}]`);
      else lines.push(`{${cells.map((cell, at) => keys[at]! + cell).join(",")}}\n`);
    }
    return lines.join(this.format === "json" ? "," : "");
  }

  private text(value: Plain): string {
    if (this.format !== "csv") return jsonText(value);
    if (value === null) return "";
    return csvText(typeof value === "object" ? jsonText(value) : String(value));
  }
}

/** The engine's spelling of a type; JSON is text to the engine, but not to people. */
export const typeName = (type: DuckDBType): string => type.alias ?? type.toString();

/** Null is an empty field, so an empty text is quoted (RFC 4180 allows it). */
function csvText(text: string): string {
  return text === "" || /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function jsonText(value: Plain): string {
  if (typeof value === "bigint") return value.toString();
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (value instanceof PlainObject) {
    return `{${value.entries.map(([key, item]) => `${JSON.stringify(key)}:${jsonText(item)}`).join(",")}}`;
  }
  return `[${value.map(jsonText).join(",")}]`;
}

function plainOf(value: DuckDBValue | undefined, type: DuckDBType | undefined, exact: boolean): Plain {
  if (value === null || value === undefined) return null;
  switch (typeof value) {
    case "boolean":
    case "string":
      return value;
    case "number":
      if (Number.isNaN(value)) return "NaN";
      if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
      return type?.typeId === DuckDBTypeId.FLOAT ? shortest(value) : value;
    case "bigint":
      return exact ? value.toString() : Number(value);
    default:
      return plainObjectOf(value, type, exact);
  }
}

function plainObjectOf(value: DuckDBValue & object, type: DuckDBType | undefined, exact: boolean): Plain {
  if (value instanceof DuckDBListValue || value instanceof DuckDBArrayValue) {
    const inner =
      type instanceof DuckDBListType || type instanceof DuckDBArrayType ? type.valueType : undefined;
    return value.items.map((item) => plainOf(item, inner, exact));
  }
  if (value instanceof DuckDBStructValue && type instanceof DuckDBStructType) {
    const fields = Object.values(value.entries);
    const items = type.entryTypes.map((inner, at) => plainOf(fields[at], inner, exact));
    // A tuple: its fields have places and no names.
    if (type.entryNames.every((name) => name === "")) return items;
    return new PlainObject(type.entryNames.map((name, at) => [name, items[at]!]));
  }
  if (value instanceof DuckDBMapValue) {
    const types = type instanceof DuckDBMapType ? type : undefined;
    return new PlainObject(
      value.entries.map((entry) => {
        const key = plainOf(entry.key, types?.keyType, exact);
        return [
          typeof key === "object" ? jsonText(key) : String(key),
          plainOf(entry.value, types?.valueType, exact),
        ];
      }),
    );
  }
  if (value instanceof DuckDBUnionValue && type instanceof DuckDBUnionType) {
    const at = Number(value.tag.slice(1));
    return new PlainObject([[type.memberTags[at]!, plainOf(value.value, type.memberTypes[at], exact)]]);
  }
  if (value instanceof DuckDBDecimalValue) return exact ? value.toString() : Number(value.toString());
  if (value instanceof DuckDBTimestampTZValue) return instant(value.micros, 6, "Z");
  if (value instanceof DuckDBTimestampValue) return instant(value.micros, 6, "");
  if (value instanceof DuckDBTimestampMillisecondsValue) return instant(value.millis, 3, "");
  if (value instanceof DuckDBTimestampNanosecondsValue) return instant(value.nanos, 9, "");
  if (value instanceof DuckDBTimestampSecondsValue) return instant(value.seconds, 0, "");
  if (value instanceof DuckDBDateValue) {
    if (value.days === 2147483647) return "infinity";
    if (value.days === -2147483647) return "-infinity";
    return date(value.days);
  }
  if (value instanceof DuckDBTimeValue) return timeOfDay(value.micros, 6);
  if (value instanceof DuckDBTimeTZValue) return timeOfDay(value.micros, 6) + offset(value.offset);
  if (value instanceof DuckDBIntervalValue) return duration(value);
  if (value instanceof DuckDBBlobValue) return Buffer.from(value.bytes).toString("base64");
  if (value instanceof DuckDBUUIDValue || value instanceof DuckDBBitValue) return value.toString();
  throw new Error("assertion failed: a column's type is looked at before its values");
}

/** The shortest decimal that reads back as the same 32-bit float: 1.1, not 1.100000023841858. */
function shortest(value: number): number {
  for (let digits = 6; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return value;
}

const MAX_INT64 = 2n ** 63n - 1n;

function instant(units: bigint, digits: number, zone: string): string {
  if (units === MAX_INT64) return "infinity";
  if (units === -MAX_INT64) return "-infinity";
  const perDay = 86_400n * 10n ** BigInt(digits);
  const inDay = ((units % perDay) + perDay) % perDay;
  return `${date(Number((units - inDay) / perDay))}T${timeOfDay(inDay, digits)}${zone}`;
}

/** HH:MM:SS with 0, 3, 6 or 9 digits after the point, as few as hold the value. */
function timeOfDay(units: bigint, digits: number): string {
  const perSecond = 10n ** BigInt(digits);
  const seconds = Number(units / perSecond);
  const clock = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60]
    .map((part) => String(part).padStart(2, "0"))
    .join(":");
  let fraction = digits === 0 ? "" : String(units % perSecond).padStart(digits, "0");
  while (fraction.endsWith("000")) fraction = fraction.slice(0, -3);
  return fraction === "" ? clock : `${clock}.${fraction}`;
}

function offset(seconds: number): string {
  const minutes = Math.floor(Math.abs(seconds) / 60);
  const text = `${String(Math.floor(minutes / 60)).padStart(2, "0")}:${String(minutes % 60).padStart(2, "0")}`;
  return (seconds < 0 ? "-" : "+") + text;
}

/**
 * The proleptic Gregorian date of a day count from 1970-01-01, for years far outside what Date can hold; years
 * outside 0 to 9999 have a sign and six digits, as ISO 8601 wants. Counts in 400-year cycles that begin in March.
 */
function date(days: number): string {
  const shifted = days + 719_468;
  const cycle = Math.floor(shifted / 146_097);
  const dayOfCycle = shifted - cycle * 146_097;
  const yearOfCycle = Math.floor(
    (dayOfCycle -
      Math.floor(dayOfCycle / 1460) +
      Math.floor(dayOfCycle / 36_524) -
      Math.floor(dayOfCycle / 146_096)) /
      365,
  );
  const dayOfYear =
    dayOfCycle - (365 * yearOfCycle + Math.floor(yearOfCycle / 4) - Math.floor(yearOfCycle / 100));
  const marchMonth = Math.floor((5 * dayOfYear + 2) / 153);
  const day = dayOfYear - Math.floor((153 * marchMonth + 2) / 5) + 1;
  const month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9;
  const year = yearOfCycle + cycle * 400 + (month <= 2 ? 1 : 0);
  const digits =
    year >= 0 && year <= 9999
      ? String(year).padStart(4, "0")
      : (year < 0 ? "-" : "+") + String(Math.abs(year)).padStart(6, "0");
  return `${digits}-${String(month).padStart(2, "0")}-${String(day).padStart(2, "0")}`;
}

/** P1Y2M3DT4H5M6.7S; months, days and time each have their own sign. */
function duration({ months, days, micros }: DuckDBIntervalValue): string {
  const parts: string[] = [];
  const years = Math.trunc(months / 12);
  if (years !== 0) parts.push(`${years}Y`);
  if (months % 12 !== 0) parts.push(`${months % 12}M`);
  if (days !== 0) parts.push(`${days}D`);
  if (micros !== 0n) {
    parts.push("T");
    const hours = micros / 3_600_000_000n;
    const minutes = (micros / 60_000_000n) % 60n;
    const rest = micros % 60_000_000n;
    if (hours !== 0n) parts.push(`${hours}H`);
    if (minutes !== 0n) parts.push(`${minutes}M`);
    if (rest !== 0n) {
      const size = rest < 0n ? -rest : rest;
      const fraction = String(size % 1_000_000n)
        .padStart(6, "0")
        .replace(/0+$/, "");
      parts.push(`${rest < 0n ? "-" : ""}${size / 1_000_000n}${fraction === "" ? "" : `.${fraction}`}S`);
    }
  }
  return parts.length === 0 ? "PT0S" : `P${parts.join("")}`;
}
