/** Numbers, times and texts as people read them. */

/** 1234567 → "1,234,567" */
export const grouped = (value: number | bigint | string): string =>
  String(value).replace(/^(-?)(\d+)/, (_, sign: string, digits: string) => {
    return sign + digits.replace(/\B(?=(\d{3})+$)/g, ",");
  });

/** 0.4 s, 12 s, 3 min 20 s */
export function duration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Control characters, direction marks included, as escapes. */
export const printable = (text: string): string =>
  text.replace(CONTROLS, (character) => {
    if (character === "\n") return "\\n";
    if (character === "\t") return "\\t";
    return `\\u${character.codePointAt(0)!.toString(16).padStart(4, "0")}`;
  });

const CONTROLS = /[\p{Cc}\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/gu;
