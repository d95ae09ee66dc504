import { TributaryError } from "../base/errors.js";

/** What callers of the port see: our own errors as they are, all else as a stream that is down for now. */
export const streamDown = (message: string, cause?: unknown): TributaryError =>
  cause instanceof TributaryError ? cause : new TributaryError("TRB-BUS-STREAM-DOWN", message, { cause });

export const closedError = (what: string): TributaryError =>
  new TributaryError("TRB-BUS-STREAM-DOWN", `the ${what} is closed`);
