import { CODES, type Code } from "./codes.js";

/** The only error type thrown on purpose. `message` is safe to show: no path, no other tenant's name, no secret. */
export class TributaryError extends Error {
  override readonly name = "TributaryError";
  readonly code: Code;
  readonly details: Readonly<Record<string, unknown>> | undefined;

  constructor(
    code: Code,
    message?: string,
    options?: { cause?: unknown; details?: Record<string, unknown> },
  ) {
    super(
      message ?? CODES[code].summary,
      options?.cause === undefined ? undefined : { cause: options.cause },
    );
    this.code = code;
    this.details = options?.details;
  }

  get status(): number {
    return CODES[this.code].status;
  }

  get retryable(): boolean {
    return CODES[this.code].retry;
  }

  /** The body every failing route answers with. */
  toBody(): { error: { code: Code; message: string; details?: unknown } } {
    return {
      error: {
        code: this.code,
        message: this.message,
        ...(this.details === undefined ? {} : { details: this.details }),
      },
    };
  }
}

export const hasCode = (error: unknown, code: Code): error is TributaryError =>
  error instanceof TributaryError && error.code === code;

/** A fault of our own: state that must not exist. Who catches one forgets what it had in memory. */
export class AssertionFailure extends Error {
  override readonly name = "AssertionFailure";

  constructor(message: string) {
    super(`assertion failed: ${message}`);
  }
}

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionFailure(message);
}

/** Node's system error code (`ENOENT`, …) of a caught value, if it has one. */
export function errno(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
