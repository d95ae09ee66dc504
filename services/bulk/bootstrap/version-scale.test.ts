import { expect, test } from "vitest";
import { magnitude, type Spread, scaleApart } from "./version-scale.js";

const spread = (median: number, high = median): Spread => ({ rows: 100, median, high });
const [seconds, millis, micros] = [1.6e9, 1.6e12, 1.6e15].map((time) => spread(time, time * 1.1));
const counters = spread(3, 4_000);

test.each([
  ["times in ms against counters", millis!, counters, "export"],
  ["times in s against counters", seconds!, counters, "export"],
  ["times in ms against times in s", millis!, seconds!, "export"],
  ["times in us against times in ms", micros!, millis!, "export"],
  ["days against counters", spread(20_400, 20_500), spread(2, 9), "export"],
  ["times in s against times in ms", seconds!, millis!, "live"],
  ["counters against times in ms", counters, millis!, "live"],
  ["counters of rows that change often, and seldom", spread(500, 90_000), spread(2, 900), undefined],
  ["the other way round", spread(2, 900), spread(500, 90_000), undefined],
  ["a few rows at first", spread(4, 30), spread(1, 1), undefined],
  ["years of times in ms", spread(1.2e12, 1.7e12), spread(1.75e12, 1.75e12), undefined],
  ["the place in a log, from long ago", spread(4e6, 8e9), spread(8e9, 8.1e9), undefined],
  ["one wrong live version", millis!, { rows: 100, median: 4, high: 5_000 }, "export"],
] as const)("%s", (_, exported, live, above) => {
  expect(scaleApart(exported, live)).toBe(above);
});

test("a message tells of orders of magnitude alone", () => {
  expect([0.5, 1, 999, 1.7e12].map(magnitude)).toEqual([
    "about 10^0",
    "about 10^0",
    "about 10^2",
    "about 10^12",
  ]);
});
