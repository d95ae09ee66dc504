import { TributaryError } from "../base/errors.js";

export const isConsumerName = (name: string): boolean => /^[a-z0-9][a-z0-9_-]{0,63}$/.test(name);

/** Errors: TRB-CONFIG. */
export function checkConsumerName(name: string): void {
  if (!isConsumerName(name)) {
    throw new TributaryError("TRB-CONFIG", "consumer name: expected 1 to 64 of a-z 0-9 _ -");
  }
}
