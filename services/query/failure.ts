import type { Code } from "../base/codes.js";
import { type EngineError, engineErrorOf } from "../base/engine-error.js";
import { TributaryError } from "../base/errors.js";
import type { Failure } from "./protocol.js";
import type { SqlPosition } from "./sql-text.js";

/** Exception types of the engine, by the code they are answered with. */
const CODE_OF: Readonly<Record<string, Code>> = {
  Parser: "TRB-QUERY-SYNTAX",
  Syntax: "TRB-QUERY-SYNTAX",
  Binder: "TRB-QUERY-BIND",
  Catalog: "TRB-QUERY-BIND",
  "Not implemented": "TRB-QUERY-BIND",
  "Mismatch Type": "TRB-QUERY-BIND",
  "Parameter Not Resolved": "TRB-QUERY-BIND",
  "Parameter Not Allowed": "TRB-QUERY-BIND",
  Expression: "TRB-QUERY-BIND",
  "Out of Memory": "TRB-QUERY-MEMORY",
  "Object Size": "TRB-QUERY-MEMORY",
  INTERRUPT: "TRB-QUERY-TIMEOUT",
  INTERNAL: "TRB-INTERNAL",
  FATAL: "TRB-INTERNAL",
  IO: "TRB-INTERNAL",
  Permission: "TRB-QUERY-CONSTRUCT",
};

/** Kinds within a type, where the engine tells them apart. */
const CODE_OF_SUBTYPE: Readonly<Record<string, Code>> = {
  COLUMN_NOT_FOUND: "TRB-QUERY-COLUMN",
};
const TOLD_OF_SUBTYPE: Readonly<Record<string, string>> = {
  UNSUPPORTED:
    "an aggregate, a window function, UNNEST or a subquery stands where it cannot (in WHERE, GROUP BY, LIMIT, say)",
  NO_MATCHING_FUNCTION: "no variant of the function or operator takes values of these types",
};

/** Where it does not, its words decide: columns, and what is not about types at all. */
const ABOUT_COLUMNS =
  /^Referenced (column|table) "|^Ambiguous reference|does not have a column named|^Column "|^Cannot extract field/;
const TOLD_OF_MESSAGE: readonly (readonly [RegExp, string])[] = [
  [/^LIMIT\/OFFSET cannot be negative/, "LIMIT and OFFSET must not be negative"],
  [/must appear in the GROUP BY clause/, "a column must stand in GROUP BY or inside an aggregate"],
  [/^Set operations can only apply/, "both sides of a set operation must have the same number of columns"],
  [/cannot contain (window functions|aggregates)|^UNNEST not supported/, TOLD_OF_SUBTYPE.UNSUPPORTED!],
];

/**
 * What may be told of a failure: its code and the place in the user's SQL. Of the engine's words, none.
 * The session has errors_as_json set, so that kind and place need not be guessed from prose.
 * `users`: it came while the user's statement ran, so that a fault of the engine's own is the statement's doing.
 */
export function failureOf(error: unknown, users = false): Failure {
  if (error instanceof TributaryError) {
    const position = error.details?.position as SqlPosition | undefined;
    const { code, message } = error;
    return { type: "failed", code, message, ...(position === undefined ? {} : { position }) };
  }
  const told = engineErrorOf(error);
  if (told === undefined) return { type: "failed", code: "TRB-INTERNAL", cause: assertionOf(error) };
  const code = codeOf(told);
  const place = told.position === undefined ? {} : { offset: told.position };
  if (users && (told.type === "INTERNAL" || told.type === "FATAL")) {
    const message = "the engine cannot run this query: write it another way";
    return { type: "failed", code: "TRB-QUERY-RUNTIME", message, broken: true, ...place };
  }
  const message = code === "TRB-QUERY-BIND" ? wordsOf(told) : undefined;
  return {
    type: "failed",
    code,
    ...(message === undefined ? {} : { message }),
    ...place,
    ...(code === "TRB-INTERNAL" ? { cause: told.type } : {}),
  };
}

/** As `failureOf`, while a table's rows are loaded: no statement of the user's has run yet. */
export function loadFailureOf(error: unknown): Failure {
  const failed = failureOf(error);
  const own = error instanceof TributaryError || engineErrorOf(error) === undefined;
  if (own || failed.code === "TRB-QUERY-MEMORY" || failed.code === "TRB-QUERY-TIMEOUT") return failed;
  return { type: "failed", code: "TRB-QUERY-UNREADABLE" };
}

/** Words of our own for what is not about types. */
const wordsOf = ({ subtype, message }: EngineError): string | undefined =>
  TOLD_OF_SUBTYPE[subtype ?? ""] ?? TOLD_OF_MESSAGE.find(([pattern]) => pattern.test(message))?.[1];

/** Our own assertions name no data; what anything else says is not known. */
const assertionOf = (error: unknown): string =>
  error instanceof Error && error.message.startsWith("assertion failed: ")
    ? error.message
    : "an unknown error";

function codeOf(told: EngineError): Code {
  if (told.message.startsWith("Max expression depth")) return "TRB-QUERY-TOO-LONG";
  const code = CODE_OF_SUBTYPE[told.subtype ?? ""] ?? CODE_OF[told.type] ?? "TRB-QUERY-RUNTIME";
  if (code === "TRB-QUERY-BIND" && ABOUT_COLUMNS.test(told.message)) return "TRB-QUERY-COLUMN";
  return code;
}
