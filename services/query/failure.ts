import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import type { Failure } from "./protocol.js";

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

const ABOUT_COLUMNS =
  /^Referenced (column|table) "|^Ambiguous reference|does not have a column named|^Column "|^Cannot extract field/;

/**
 * What may be told of a failure: its code and the place in the user's SQL. Of the engine's words, none.
 * The session has errors_as_json set, so that kind and place need not be guessed from prose.
 */
export function failureOf(error: unknown): Failure {
  if (error instanceof TributaryError) {
    return { type: "failed", code: error.code, message: error.message };
  }
  const told = readError(error);
  if (told === undefined) return { type: "failed", code: "TRB-INTERNAL", cause: assertionOf(error) };
  const code = codeOf(told);
  return {
    type: "failed",
    code,
    ...(told.position === undefined ? {} : { offset: told.position }),
    ...(code === "TRB-INTERNAL" ? { cause: told.type } : {}),
  };
}

/** Our own assertions name no data; what anything else says is not known. */
const assertionOf = (error: unknown): string =>
  error instanceof Error && error.message.startsWith("assertion failed: ")
    ? error.message
    : "an unknown error";

function codeOf(told: EngineError): Code {
  if (told.message.startsWith("Max expression depth")) return "TRB-QUERY-TOO-LONG";
  const code = CODE_OF[told.type] ?? "TRB-QUERY-RUNTIME";
  if (code === "TRB-QUERY-BIND" && ABOUT_COLUMNS.test(told.message)) return "TRB-QUERY-COLUMN";
  return code;
}

interface EngineError {
  readonly type: string;
  readonly message: string;
  readonly position: number | undefined;
}

function readError(error: unknown): EngineError | undefined {
  if (!(error instanceof Error)) return undefined;
  const start = error.message.indexOf("{");
  if (start < 0) return undefined;
  try {
    const told = JSON.parse(error.message.slice(start)) as Record<string, unknown>;
    const { exception_type: type, exception_message: message, position } = told;
    if (typeof type !== "string" || typeof message !== "string") return undefined;
    return { type, message, position: typeof position === "string" ? Number(position) : undefined };
  } catch {
    return undefined;
  }
}
