/**
 * What means the same to DuckDB and to Spark, by kinds of values. Reviewed: what is not here is refused. Each entry is
 * run on both engines over values at the edges (test/support/spark-proofs.ts, test/slow/spark-models.test.ts), with
 * Spark's ANSI mode and UTC, which transforms/macros/session.sql sets.
 */

export type Kind =
  | "text"
  | "integer"
  | "double"
  | "float"
  | "decimal"
  | "boolean"
  | "date"
  | "time"
  | "bytes"
  | "null"
  | "list"
  | "struct"
  | "map"
  | "other";

/** An argument: its kind, and its value where it is written as a constant. */
export interface Argument {
  readonly kind: Kind;
  readonly constant: unknown;
  /** nullif(…, 0): not zero, whatever it is. */
  readonly neverZero: boolean;
}

export interface Rule {
  /** What it takes, in words. */
  readonly takes: string;
  readonly fits: (args: readonly Argument[]) => boolean;
  /** Spark's answer is an INT and DuckDB's a BIGINT: to be cast at once. */
  readonly narrow?: true;
}

const PLAIN: Readonly<Record<string, Kind>> = {
  VARCHAR: "text",
  SMALLINT: "integer",
  INTEGER: "integer",
  BIGINT: "integer",
  DOUBLE: "double",
  FLOAT: "float",
  BOOLEAN: "boolean",
  DATE: "date",
  "TIMESTAMP WITH TIME ZONE": "time",
  BLOB: "bytes",
  '"NULL"': "null",
};

/** The kind of a type in DuckDB's spelling. */
export function kindOf(type: string): Kind {
  if (type.endsWith("]")) return "list";
  if (type.startsWith("STRUCT(")) return "struct";
  if (type.startsWith("MAP(")) return "map";
  if (type.startsWith("DECIMAL(")) return "decimal";
  return PLAIN[type] ?? "other";
}

const all =
  (...kinds: readonly Kind[]) =>
  (args: readonly Argument[]) =>
    args.every(({ kind }) => kinds.includes(kind) || kind === "null");

/** Each argument on its own. */
const each =
  (least: number, ...checks: readonly ((arg: Argument) => boolean)[]) =>
  (args: readonly Argument[]) =>
    args.length >= least && args.length <= checks.length && args.every((arg, at) => checks[at]!(arg));

const is =
  (...kinds: readonly Kind[]) =>
  ({ kind }: Argument) =>
    kinds.includes(kind) || kind === "null";
const text = is("text");
const word = ({ constant }: Argument) => typeof constant === "string" && constant !== "";
const count =
  (least: number) =>
  ({ constant }: Argument) =>
    typeof constant === "number" && constant >= least;
const PARTS = ["year", "quarter", "month", "week", "day", "hour", "minute", "second"];

/** Whether values of these kinds may stand beside each other, as in a comparison or in the branches of a CASE. */
export function alike(kinds: readonly Kind[]): boolean {
  const [first, ...others] = [...new Set(kinds.filter((kind) => kind !== "null"))];
  if (first === undefined || others.length === 0) return first !== "other";
  return [first, ...others].every((kind) => kind === "integer" || kind === "double");
}

const same = (...kinds: readonly Kind[]) => ({
  fits: (args: readonly Argument[]) => alike(args.map(({ kind }) => kind)) && all(...kinds)(args),
  takes: `arguments of one kind: ${kinds.join(", ")}`,
});
const texts = (takes: string, ...checks: readonly ((arg: Argument) => boolean)[]): Rule => ({
  takes,
  fits: each(checks.length, ...checks),
});
const divisor = (arg: Argument) => arg.neverZero || (typeof arg.constant === "number" && arg.constant !== 0);
const part = (kinds: readonly Kind[]): Rule => ({
  takes: `a ${kinds.join(" or a ")}`,
  fits: each(1, is(...kinds)),
  narrow: true,
});

export const RULES: Readonly<Record<string, Rule>> = {
  "||": { takes: "text", fits: all("text") },
  "+": {
    takes: "integers, doubles, or a date and an integer",
    fits: (args) => all("integer", "double")(args) || each(2, is("date"), is("integer"))(args),
  },
  "-": {
    takes: "integers, doubles, or a date and an integer",
    fits: (args) => all("integer", "double")(args) || each(2, is("date"), is("integer"))(args),
  },
  "*": { takes: "integers or doubles", fits: all("integer", "double") },
  "/": {
    takes: "integers, and a divisor that is never 0: a constant or nullif(…, 0)",
    fits: (args) => all("integer")(args) && args[1] !== undefined && divisor(args[1]),
  },
  "%": {
    takes: "integers, and a constant divisor that is neither 0 nor -1",
    fits: (args) =>
      all("integer")(args) && typeof args[1]?.constant === "number" && ![0, -1].includes(args[1].constant),
  },
  "~~": texts("text and a constant pattern", text, word),
  "!~~": texts("text and a constant pattern", text, word),
  abs: { takes: "an integer or a double", fits: each(1, is("integer", "double")) },
  concat_ws: {
    takes: "a constant text, then text",
    fits: (args) => typeof args[0]?.constant === "string" && args.length > 1 && all("text")(args),
  },
  contains: texts("text and a constant text", text, word),
  date_trunc: {
    takes: `a constant (${PARTS.join(", ")}) and a time`,
    fits: each(2, ({ constant }) => PARTS.includes(String(constant)), is("time")),
  },
  day: part(["time", "date"]),
  greatest: same("integer", "text", "date", "time"),
  hour: part(["time"]),
  instr: { ...texts("text and a constant text", text, word), narrow: true },
  least: same("integer", "text", "date", "time"),
  left: texts("text and a constant number, 0 or more", text, count(0)),
  length: { takes: "text", fits: each(1, text), narrow: true },
  ltrim: texts("text alone", text),
  md5: texts("text", text),
  minute: part(["time"]),
  month: part(["time", "date"]),
  nullif: same("integer", "double", "text", "boolean", "date", "time"),
  repeat: texts("text and a constant number, 0 or more", text, count(0)),
  replace: texts("text, a constant text that is not empty, and text", text, word, text),
  right: texts("text and a constant number, 0 or more", text, count(0)),
  rtrim: texts("text alone", text),
  split_part: texts(
    "text, a constant text that is not empty, and a constant number, 1 or more",
    text,
    word,
    count(1),
  ),
  substr: { takes: "text and constant numbers, from 1 and 0 on", fits: each(2, text, count(1), count(0)) },
  substring: { takes: "text and constant numbers, from 1 and 0 on", fits: each(2, text, count(1), count(0)) },
  translate: texts("text and two constant texts of one length", text, word, word),
  trim: texts("text alone", text),
  year: part(["time", "date"]),
};

/** Kinds that may be cast to a type; the type's width is checked by both. */
export const CASTS: Readonly<Record<string, readonly Kind[]>> = {
  VARCHAR: ["text", "integer", "boolean", "date"],
  INTEGER: ["integer", "boolean"],
  BIGINT: ["integer", "boolean"],
  DOUBLE: ["integer", "float", "double"],
  DECIMAL: ["integer"],
  DATE: ["time", "date"],
};

/** What to write in the place of what is not here. */
export const INSTEAD: Readonly<Record<string, string>> = {
  "//": "cast of a division is not the same either: divide where the table is read",
  "**": "x * x",
  "^": "x * x",
  array_contains: "a field of its own; the answer differs where the list holds NULL",
  array_extract: "a field of its own: lists begin at 1 here and at 0 in Spark",
  array_slice: "a field of its own, or slice it where the table is read",
  concat: "a || b, with coalesce(b, '') where NULL shall not count",
  date_diff: "the two times as columns",
  date_part: "year(), month(), day(), hour() or minute() within a cast",
  epoch: "the time itself as a column",
  epoch_ms: "the time itself as a column",
  epoch_us: "the time itself as a column",
  lower: "translate(); outside ASCII the answers differ",
  list_filter: "the list itself as a column",
  list_transform: "the list itself as a column",
  list_value: "columns of their own",
  regexp_extract: "split_part() or substr(); regular expressions are of another dialect",
  regexp_matches: "LIKE; regular expressions are of another dialect",
  regexp_replace: "replace() or translate(); regular expressions are of another dialect",
  round: "the number itself as a column; halves are rounded otherwise",
  starts_with: "x LIKE 'prefix%'",
  strftime: "the time itself, or cast(cast(t as date) as string)",
  struct_pack: "columns of their own",
  strptime: "a Timestamp in the .proto",
  upper: "translate(); outside ASCII the answers differ",
  "~~*": "LIKE",
};
