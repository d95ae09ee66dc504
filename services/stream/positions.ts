import { TributaryError } from "../base/errors.js";

const WIDTH = 16;
const LAST_DIGITS = Array.from({ length: 1000 }, (_, n) => String(n).padStart(3, "0"));

/** Positions count from 1 in each partition and are shown with a fixed width, so that they order as strings. */
export const formatPosition = (position: number): string => String(position).padStart(WIDTH, "0");

export function parsePosition(text: string): number {
  const position = /^\d{16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(position)) {
    throw new TributaryError("TRB-STREAM-CORRUPT", "position: expected 16 decimal digits");
  }
  return position;
}

/** Formats growing positions several times faster than `formatPosition`: a thousand in a row share their front. */
export class PositionFormatter {
  private thousands = -1;
  private front = "";

  format(position: number): string {
    const thousands = Math.floor(position / 1000);
    if (thousands !== this.thousands) {
      this.thousands = thousands;
      this.front = String(thousands).padStart(WIDTH - 3, "0");
    }
    return this.front + LAST_DIGITS[position - thousands * 1000]!;
  }
}
