import { TributaryError } from "../base/errors.js";

/** Printable ASCII without the backslash, so that keys order alike as strings, as bytes and on every store. */
const KEY = /^[\x20-\x5b\x5d-\x7e]+$/;
const MAX_KEY_BYTES = 1024;

/** Errors: TRB-STORE-FAILED. */
export function checkKey(key: string): void {
  const segments = key.split("/");
  if (
    key.length > MAX_KEY_BYTES ||
    !KEY.test(key) ||
    segments.some((segment) => segment === "" || segment === "." || segment === "..")
  ) {
    throw badKey("key", "printable ASCII without empty, '.' or '..' segments");
  }
}

/** A prefix may end anywhere in a key, also be empty. */
export function checkPrefix(prefix: string): void {
  const complete = prefix.split("/").slice(0, -1);
  if (
    prefix.length > MAX_KEY_BYTES ||
    (prefix !== "" && !KEY.test(prefix)) ||
    complete.some((segment) => segment === "" || segment === "." || segment === "..")
  ) {
    throw badKey("prefix", "the beginning of a key");
  }
}

// The key itself stays out of the message: it may name a tenant.
const badKey = (what: string, expected: string) =>
  new TributaryError("TRB-STORE-FAILED", `${what}: expected ${expected}`);
