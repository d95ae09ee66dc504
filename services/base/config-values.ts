import { z } from "zod";

/** What settings are made of. */

/** Digits, as variables have them, or a number: what Number() makes of "", null or [] is no setting. */
export const whole = (min: number, max = Number.MAX_SAFE_INTEGER) =>
  z.preprocess(
    (value) => (typeof value === "string" && /^\d+$/.test(value) ? Number(value) : value),
    z.number().int().min(min).max(max),
  );
/** As variables have it, or a boolean. */
export const flag = z.preprocess(
  (value) => (value === "true" ? true : value === "false" ? false : value),
  z.boolean(),
);
export const count = (fallback: number, min = 1) => whole(min).default(fallback);
export const MiB = 1024 * 1024;
/** A variable gives several, separated by commas. */
export const several = (value: unknown) => (typeof value === "string" ? value.split(",") : value);
