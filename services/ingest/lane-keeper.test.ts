import { rmSync } from "node:fs";
import { afterEach, beforeEach, expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { encodeTestEvent, type Lake, THING } from "../../test/support/lake.js";
import { pipelineLake, until } from "../../test/support/pipeline-run.js";
import { LaneKeeper } from "./lane-keeper.js";

/** What a type keeps in memory while its table hangs. */

const SHARE = 64 * 1024;
/** Longer than a landing may take before what waits behind it is parked, if it is much. */
const LATE_MS = 60_000;

let lake: Lake;
let keeper: LaneKeeper;
let hanging: Promise<void> | undefined;
let release: () => void;
let reads: number;
beforeEach(async () => {
  reads = 0;
  hanging = undefined;
  lake = await pipelineLake({
    store: (inner) =>
      overriding(inner, {
        adopt: async (files) => {
          await hanging;
          return inner.adopt(files);
        },
      }),
  });
  const host = {
    settled: () => undefined,
    freed: () => undefined,
    landed: () => undefined,
    ready: () => undefined,
    fatal: (error: unknown) => expect.fail(String(error)),
  };
  keeper = new LaneKeeper(lake.context, THING, host, SHARE);
  await until("the table to be open", () => keeper.lands);
});
afterEach(async () => {
  release();
  await keeper.close();
  await lake.close();
  rmSync(lake.folder, { recursive: true, force: true });
});

/** One event, which comes with so many bytes of others in one buffer. */
function gather(others: number): void {
  const event = encodeTestEvent({
    tenant: "acme",
    id: `thing-${reads}`,
    operation: 1,
    version: 1n,
    thing: { name: "small" },
  });
  const bytes = Buffer.concat([event, Buffer.alloc(others)]);
  const batch = keeper.gather(reads, () => undefined);
  batch.add(bytes, 0, event.length, "0", String(++reads).padStart(16, "0"), Date.now());
}

function hang(): void {
  hanging = new Promise((resolve) => {
    release = resolve;
  });
  gather(0);
  void keeper.flush();
}

const dueLate = () => keeper.dueIn(performance.now() + LATE_MS);

test("few small events that wait behind a landing need not be parked", () => {
  hang();
  for (let i = 0; i < 10; i++) gather(0);
  expect(dueLate()).toBeUndefined();
});

test("as few are parked that keep much of what others have sent in memory", async () => {
  hang();
  for (let i = 0; i < 10; i++) gather(SHARE);
  expect(dueLate()).toBe(0);
  void keeper.flush();
  // Durable elsewhere, and out of memory, while that landing still hangs.
  await until("them to be parked", () => keeper.waitingBytes === 0 && !keeper.busy);
});

test("many events that are next to nothing in bytes take memory all the same", () => {
  hang();
  while (keeper.waitingBytes < SHARE / 2) gather(0);
  expect(dueLate()).toBe(0);
});
