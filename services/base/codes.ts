import { EVENT_CODES } from "./codes-of-events.js";
import { SOURCE_CODES } from "./codes-of-sources.js";
import { LAKE_CODES } from "./codes-of-the-lake.js";

/** The closed list of failure codes. One code per failure; docs/errors.md is checked against this list. */
export const CODES = { ...EVENT_CODES, ...LAKE_CODES, ...SOURCE_CODES } as const;

export type Code = keyof typeof CODES;
