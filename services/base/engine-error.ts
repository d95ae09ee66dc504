/** An error of the SQL engine: its own type and words, which may quote values. */
export interface EngineError {
  /** DuckDB's exception type, e.g. "Conversion", "Out of Memory", "IO". */
  readonly type: string;
  readonly message: string;
  /** Of `errors_as_json` only, and not of every error: the kind within the type, e.g. "COLUMN_NOT_FOUND". */
  readonly subtype: string | undefined;
  /** Likewise: where in the statement, in bytes from its start. */
  readonly position: number | undefined;
}

/** Undefined for what is no error of the engine. Reads both of its forms: `errors_as_json`, and "<type> Error: …". */
export function engineErrorOf(error: unknown): EngineError | undefined {
  if (!(error instanceof Error)) return undefined;
  const start = error.message.indexOf('{"exception_type"');
  if (start >= 0) return fromJson(error.message.slice(start));
  const [, type, message] = /^([A-Za-z][A-Za-z ]*?) Error: (.*)/s.exec(error.message) ?? [];
  return type === undefined
    ? undefined
    : { type, message: message!, subtype: undefined, position: undefined };
}

function fromJson(text: string): EngineError | undefined {
  try {
    const told = JSON.parse(text) as Record<string, unknown>;
    const { exception_type: type, exception_message: message, error_subtype: subtype, position } = told;
    return {
      type: String(type),
      message: String(message),
      subtype: typeof subtype === "string" ? subtype : undefined,
      position: typeof position === "string" ? Number(position) : undefined,
    };
  } catch {
    return undefined;
  }
}

/** What says that a value does not fit an expression. */
const DATA = new Set([
  "Conversion",
  "Constraint",
  "Decimal",
  "Dependency",
  "Divide by Zero",
  "Invalid Input",
  "Invalid type",
  "Mismatch Type",
  "Object Size",
  "Out of Range",
  "Parameter Not Allowed",
]);

export const isDataError = ({ type }: EngineError): boolean => DATA.has(type);

export const isMemoryError = ({ type }: EngineError): boolean => type === "Out of Memory";

/** Of an error as it was thrown, whether less at once may help: what cuts rows short is memory most often. */
export function isOutOfMemory(error: unknown): boolean {
  const told = engineErrorOf(error);
  return told !== undefined && (isMemoryError(told) || isCutShort(told));
}

/** Of a file that is not there, of those that a statement names. */
export const isFileGone = ({ type, message }: EngineError): boolean =>
  type === "IO" && /No files found|No such file/.test(message);

/** Of rows that could not be read to the end; the engine does not say why. */
export const isCutShort = ({ type }: EngineError): boolean => type === "TransactionContext";

/** A fault of the engine's own, after which it may answer nothing any more. */
export const isEngineFault = (error: EngineError): boolean =>
  error.type === "INTERNAL" || isEngineGone(error);

/** After such an error the engine answers nothing any more: only a new one helps. */
export const isEngineGone = ({ type }: EngineError): boolean => type === "FATAL";

/** A statement that was interrupted by us. */
export const isInterrupt = ({ type }: EngineError): boolean => type.toUpperCase() === "INTERRUPT";
