import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

const all = ["services/**/*.test.ts", "clients/**/*.test.ts", "test/**/*.test.ts"];
const beyond = ["test/slow/**", "test/nightly/**", "test/integration/**"];
/** One less than the cores by default, which on two is one; some tests wait rather than work, so one more than two. */
const everyCore = { maxWorkers: Math.max(3, availableParallelism()) };
/** Far beyond what anything takes alone: a machine that does something else besides is no failure. */
const timeouts = { testTimeout: 120_000, hookTimeout: 120_000 };

/** Property tests and fault injection over the lake: most of the time of `npm test`, and little that is Node's own. */
const long = [
  "services/ingest/**",
  "services/bulk/**",
  "services/table/compact.test.ts",
  "services/table/several-writers.test.ts",
  "services/table/staging.test.ts",
  "services/stream/embedded/crash.test.ts",
  "services/query/session.test.ts",
  "services/query/allowed-functions.test.ts",
  "services/contracts/payload-columns.test.ts",
  "services/contracts/payload-encoder.test.ts",
  "services/table/foreign-reader.test.ts",
  "services/main/workload/**",
  "services/models/models.test.ts",
  "test/faults.test.ts",
];

const slowTimeouts = { testTimeout: 900_000, hookTimeout: 120_000 };

// "unit" is what a newcomer runs (`npm test`); "fast" is unit without what takes long, for further releases of Node;
// "slow" holds the suites that .ci/run adds: crash rounds, foreign readers, hostile SQL at full length;
// "nightly" is what only .ci/nightly runs.
export default defineConfig({
  test: {
    projects: [
      { test: { name: "unit", include: all, exclude: beyond, ...everyCore, ...timeouts } },
      { test: { name: "fast", include: all, exclude: [...beyond, ...long], ...everyCore, ...timeouts } },
      // They start several processes each, and some compare times: two at once take longer than one after the other.
      {
        test: { name: "slow", include: ["test/slow/**/*.test.ts"], fileParallelism: false, ...slowTimeouts },
      },
      // They start foreign servers by themselves (test/servers/), and mostly wait: for these, or for a lease to run out.
      {
        test: {
          name: "integration",
          include: ["test/integration/**/*.test.ts"],
          maxWorkers: 2,
          globalSetup: "test/servers/install.ts",
          ...slowTimeouts,
        },
      },
      { test: { name: "nightly", include: ["test/nightly/**/*.test.ts"], ...slowTimeouts } },
    ],
  },
});
