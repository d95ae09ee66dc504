import { defineConfig } from "vitest/config";

// "unit" is what a newcomer runs (`npm test`); "slow" holds the suites that .ci/run adds:
// crash rounds, foreign readers, hostile SQL at full length.
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["services/**/*.test.ts", "test/**/*.test.ts"],
          exclude: ["test/slow/**"],
          testTimeout: 30_000,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          name: "slow",
          include: ["test/slow/**/*.test.ts"],
          testTimeout: 900_000,
          hookTimeout: 120_000,
          fileParallelism: false,
        },
      },
    ],
  },
});
