/** An error of the SQL engine: its own type and words, which may quote values. */
export interface EngineError {
  /** DuckDB's exception type, e.g. "Conversion", "Out of Memory", "IO". */
  readonly type: string;
  readonly message: string;
}

/** Undefined for what is no error of the engine. Reads both of its forms: `errors_as_json`, and "<type> Error: …". */
export function engineErrorOf(error: unknown): EngineError | undefined {
  if (!(error instanceof Error)) return undefined;
  const start = error.message.indexOf('{"exception_type"');
  if (start >= 0) {
    try {
      const told = JSON.parse(error.message.slice(start)) as Record<string, unknown>;
      return { type: String(told.exception_type), message: String(told.exception_message) };
    } catch {
      return undefined;
    }
  }
  const [, type, message] = /^([A-Za-z][A-Za-z ]*?) Error: (.*)/s.exec(error.message) ?? [];
  return type === undefined ? undefined : { type, message: message! };
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
