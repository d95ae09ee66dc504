import { cpSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Lake, Random, randomEvents, TestStream, THING } from "../../../test/support/lake.js";
import { JobDesk } from "../job-desk.js";
import type { ReplayRequest } from "../jobs/job.js";
import { planReplay } from "./replay-plan.js";

const SERVED = "refined/t/things";
const ASKED: readonly Pick<ReplayRequest, "action" | "tenant" | "from">[] = [
  { action: "compare" },
  { action: "compare", from: 3 },
  { action: "swap" },
  { action: "repair", tenant: "acme" },
  { action: "repair", tenant: "acme", from: 3 },
];

describe("what a replay could not begin with is told when it is asked for", () => {
  let lake: Lake;
  let desk: JobDesk;
  let stream: TestStream;
  const inLake = (path: string) => join(lake.folder, "lake", path);
  const ask = (words: (typeof ASKED)[number]) =>
    desk.replay(
      (use) => use(lake.context),
      { id: "r", model: "t.things", priority: 0, incomplete: false, ...words },
      "olga",
    );

  beforeEach(async () => {
    lake = await Lake.create();
    stream = new TestStream("live");
    desk = new JobDesk(lake.context.store);
    await lake.land(stream.batch(randomEvents(new Random(1), 10)));
    await lake.settled();
  });
  afterEach(() => lake.close());

  const refused = async (code: string, message: RegExp) => {
    for (const words of ASKED) {
      await expect(ask(words), JSON.stringify(words)).rejects.toMatchObject({
        code,
        message: expect.stringMatching(message),
      });
      expect(await desk.jobs.has("r"), JSON.stringify(words)).toBe(false);
    }
  };

  test.each(["", "/_delta_log"])(
    "a table that was dropped, and the command that builds it anew: %s",
    async (part) => {
      rmSync(inLake(`${SERVED}${part}`), { recursive: true });
      await refused("TRB-TABLE-NOT-FOUND", /^model: .*`tributary table repair t\.things`/);
    },
  );

  test("a table that is ahead of raw", async () => {
    cpSync(inLake(`raw/${THING}`), inLake("copy"), { recursive: true });
    await lake.land(stream.batch(randomEvents(new Random(2), 10)));
    await lake.settled();
    rmSync(inLake(`raw/${THING}`), { recursive: true });
    renameSync(inLake("copy"), inLake(`raw/${THING}`));
    await refused("TRB-TABLE-CORRUPT", /^model: .*raw was set back/);
  });

  test("and what it can begin with is planned", async () => {
    for (const words of ASKED)
      expect((await planReplay(lake.context, { model: "t.things", ...words })).files).toBe(1);
    expect(await ask({ action: "swap" })).toMatchObject({
      wasThere: false,
      plan: { rows: stream.events.length },
    });
    // It is there: asked for again it is looked at no more.
    rmSync(inLake(SERVED), { recursive: true });
    expect(await ask({ action: "swap" })).toMatchObject({ wasThere: true });
  });
});
