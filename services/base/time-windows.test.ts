import { expect, test } from "vitest";
import { isWindow, untilOpen } from "./time-windows.js";

const HOUR = 3600 * 1000;
// A Wednesday.
const at = (time: string, day = "04") => Date.parse(`2026-02-${day}T${time}Z`);

test("a window is open from its first minute to its last, over midnight too", () => {
  const night = ["22:00-06:00"];
  expect(untilOpen(night, at("22:00:00"))).toBe(0);
  expect(untilOpen(night, at("05:59:59"))).toBe(0);
  expect(untilOpen(night, at("06:00:00"))).toBe(16 * HOUR);
  expect(untilOpen(night, at("21:59:30"))).toBe(30_000);
  expect(untilOpen(["00:00-24:00"], at("23:59:59"))).toBe(0);
  expect(untilOpen([], at("12:00:00"))).toBe(0);
});

test("days are those on which a window begins; the next one of several counts", () => {
  const week = ["Mon-Fri 20:00-06:00"];
  // Friday's window ends on Saturday.
  expect(untilOpen(week, at("05:00:00", "07"))).toBe(0);
  expect(untilOpen(week, at("21:00:00", "07"))).toBe(47 * HOUR);
  expect(untilOpen([...week, "Sat,Sun 22:00-23:00"], at("21:00:00", "07"))).toBe(HOUR);
  expect(untilOpen(["Sat-Mon 00:00-24:00"], at("12:00:00", "08"))).toBe(0);
  expect(untilOpen(["Sat-Mon 00:00-24:00"], at("12:00:00", "04"))).toBe(60 * HOUR);
});

test("what is no window is refused", () => {
  for (const text of [
    "",
    "22-06",
    "22:00-22:00",
    "24:00-06:00",
    "25:00-06:00",
    "22:60-06:00",
    "Mo 22:00-06:00",
  ])
    expect(isWindow(text), text).toBe(false);
  for (const text of ["22:00-06:00", "Sat,Sun 00:00-24:00", "Fri-Mon 01:00-02:00"])
    expect(isWindow(text), text).toBe(true);
});
