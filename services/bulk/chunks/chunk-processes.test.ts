import { expect, test, vi } from "vitest";
import { loadConfig } from "../../base/config.js";
import { ChunkProcesses } from "./chunk-processes.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

test("processes go from file to file, in the order in which they were asked for", async () => {
  const processes = new ChunkProcesses(loadConfig({}).bulk, 2);
  const given: number[] = [];
  const claims = [0, 1, 2, 3].map(async (file) => {
    const process = await processes.claim();
    given.push(file);
    return process;
  });
  const [first, second] = [await claims[0]!, await claims[1]!];
  expect(second).not.toBe(first);
  expect(given).toEqual([0, 1]);
  processes.giveBack(second);
  expect(await claims[2]!).toBe(second);
  processes.giveBack(first);
  expect(await claims[3]!).toBe(first);
  processes.giveBack(second);
  expect(await processes.claim()).toBe(second);
  const refused = expect(processes.claim()).rejects.toMatchObject({ code: "TRB-SOURCE-READER" });
  await processes.end();
  await refused;
  await expect(first.call({ type: "next" })).rejects.toMatchObject({ code: "TRB-SOURCE-READER" });
  await expect(processes.claim()).rejects.toMatchObject({ code: "TRB-SOURCE-READER" });
});
