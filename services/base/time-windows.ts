/** Times of a week, UTC: when something may be done. */

const DAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"] as const;
const DAY_MINUTES = 24 * 60;
const WEEK_MINUTES = 7 * DAY_MINUTES;
const SHAPE = /^(?:(?<days>\S+) )?(?<from>[0-2]\d:[0-5]\d)-(?<to>[0-2]\d:[0-5]\d)$/;

interface Window {
  /** Minutes since Sunday's midnight. */
  readonly start: number;
  readonly minutes: number;
}

/** As settings have them: `22:00-06:00` for each day, or `Sat,Sun 00:00-24:00`, `Mon-Fri 20:00-06:00`. */
export const WINDOW_WORDS =
  'expected a time of day "22:00-06:00", UTC, with days before it where it is not for all: "Mon-Fri 20:00-06:00", "Sat,Sun 00:00-24:00"';

/** The windows that the text stands for, one a day on which it begins; undefined for what is none. */
function parse(text: string): Window[] | undefined {
  const { days, from = "", to = "" } = SHAPE.exec(text)?.groups ?? {};
  const [start, end] = [minutesOf(from), minutesOf(to)];
  const on = days === undefined ? [...DAYS.keys()] : daysOf(days);
  if (start === undefined || end === undefined || on === undefined || start === DAY_MINUTES || start === end)
    return undefined;
  const minutes = end > start ? end - start : end + DAY_MINUTES - start;
  return on.map((day) => ({ start: day * DAY_MINUTES + start, minutes }));
}

function minutesOf(time: string): number | undefined {
  const [hours, minutes] = time.split(":").map(Number) as [number, number];
  const all = hours * 60 + minutes;
  return all <= DAY_MINUTES ? all : undefined;
}

function daysOf(text: string): number[] | undefined {
  const found: number[] = [];
  for (const part of text.split(",")) {
    const [first = "", last = first, ...rest] = part.split("-");
    const [a, b] = [first, last].map((name) => (DAYS as readonly string[]).indexOf(name)) as [number, number];
    if (a < 0 || b < 0 || rest.length > 0) return undefined;
    for (let day = a; ; day = (day + 1) % 7) {
      found.push(day);
      if (day === b) break;
    }
  }
  return found;
}

export const isWindow = (text: string): boolean => parse(text) !== undefined;

/** Milliseconds until one of the windows is open: 0 while one is, and where there are none. */
export function untilOpen(windows: readonly string[], now: number): number {
  if (windows.length === 0) return 0;
  const date = new Date(now);
  const minutes = date.getUTCDay() * DAY_MINUTES + date.getUTCHours() * 60 + date.getUTCMinutes();
  const sinceMinute = now % 60_000;
  const waits = windows.flatMap((text) =>
    (parse(text) ?? []).map(({ start, minutes: length }) => {
      const since = (minutes - start + WEEK_MINUTES) % WEEK_MINUTES;
      return since < length ? 0 : (WEEK_MINUTES - since) * 60_000 - sinceMinute;
    }),
  );
  return Math.min(...waits);
}
