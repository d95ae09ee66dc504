import { TributaryError } from "../../base/errors.js";

/**
 * Positions of a Kinesis stream: the record's sequence number, then the event's place in the record (0 where nothing was
 * aggregated), both padded, so that they order as strings: "000000004965…0482.0000003".
 */

/** AWS gives 56 digits. A longer number is refused, not cut. */
const SEQUENCE_DIGITS = 64;
/** An event takes at least four bytes of an aggregated record, of 10 MiB at most. */
const PLACE_DIGITS = 7;

/** The part of a record's positions that they share. Errors: TRB-STREAM-CORRUPT. */
export function recordPosition(sequence: string): string {
  if (sequence.length > SEQUENCE_DIGITS || !/^\d+$/.test(sequence)) {
    throw new TributaryError(
      "TRB-STREAM-CORRUPT",
      `sequence number: expected at most ${SEQUENCE_DIGITS} digits, found ${sequence.length} characters`,
    );
  }
  return `${sequence.padStart(SEQUENCE_DIGITS, "0")}.`;
}

export const eventPosition = (record: string, place: number): string =>
  record + String(place).padStart(PLACE_DIGITS, "0");

/** The sequence number of a position, as Kinesis knows it. */
export const sequenceOf = (position: string): string =>
  position.slice(0, position.indexOf(".")).replace(/^0+(?=\d)/, "");

/**
 * What a lease says of a shard: the last position done, and until when (ms since the epoch, by Kinesis' own arrival
 * times where there are any) nothing else had come. "TRIM_HORIZON" before the first. Operators may write a position, or
 * TRIM_HORIZON, without a time: what was forgotten meanwhile is then accepted as lost.
 */
export interface ShardCheckpoint {
  readonly position: string | undefined;
  readonly coveredUntil: number | undefined;
}

const NONE = "TRIM_HORIZON";

export const formatCheckpoint = ({ position, coveredUntil }: ShardCheckpoint): string =>
  `${position ?? NONE}${coveredUntil === undefined ? "" : `@${Math.floor(coveredUntil)}`}`;

/** Errors: TRB-STREAM-CORRUPT. */
export function parseCheckpoint(text: string): ShardCheckpoint {
  const match = /^(TRIM_HORIZON|\d+\.\d+)?(?:@(\d+))?$/.exec(text);
  if (match === null) {
    throw new TributaryError(
      "TRB-STREAM-CORRUPT",
      "checkpoint of a shard's lease: expected a position or TRIM_HORIZON",
    );
  }
  const [, position, until] = match;
  return {
    position: position === NONE ? undefined : position,
    coveredUntil: until === undefined ? undefined : Number(until),
  };
}
