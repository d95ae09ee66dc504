import { defineConfig } from "vitest/config";

const all = ["services/**/*.test.ts", "test/**/*.test.ts"];
const timeouts = { testTimeout: 30_000, hookTimeout: 60_000 };

/** Property tests and fault injection over the lake: most of the time of `npm test`, and little that is Node's own. */
const long = [
  "services/ingest/**",
  "services/table/compact.test.ts",
  "services/table/staging.test.ts",
  "services/stream/embedded/crash.test.ts",
  "services/query/session.test.ts",
  "services/query/allowed-functions.test.ts",
];

// "unit" is what a newcomer runs (`npm test`); "fast" is unit without what takes long, for further releases of Node;
// "slow" holds the suites that .ci/run adds: crash rounds, foreign readers, hostile SQL at full length.
export default defineConfig({
  test: {
    projects: [
      { test: { name: "unit", include: all, exclude: ["test/slow/**"], ...timeouts } },
      { test: { name: "fast", include: all, exclude: ["test/slow/**", ...long], ...timeouts } },
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
