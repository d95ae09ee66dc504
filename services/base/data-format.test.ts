import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkData, openData, UPGRADES, type UpgradeStep } from "./data-format.js";
import { nodeFiles } from "./files.js";
import { packageVersion } from "./paths.js";

describe("the format of a data folder", () => {
  let folder: string;
  const run: number[] = [];
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "tributary-format-"));
    run.length = 0;
  });
  afterEach(() => rm(folder, { recursive: true }));

  const says = async () => JSON.parse(await readFile(join(folder, "format.json"), "utf8"));
  const say = (content: unknown) => writeFile(join(folder, "format.json"), JSON.stringify(content));
  const step =
    (number: number): UpgradeStep =>
    async () => {
      run.push(number);
    };

  test("is written into a new one, without an upgrade", async () => {
    await openData(nodeFiles, folder, [step(0), step(1)]);
    expect(run).toEqual([]);
    expect(await says()).toEqual({ format: 2, writer: packageVersion });
    expect(await readdir(folder)).toEqual(["format.json"]);
  });

  test("a newer one is refused, naming both versions; nothing is touched", async () => {
    const newer = { format: UPGRADES.length + 1, writer: "9.8.7" };
    await say(newer);
    for (const use of [checkData, openData]) {
      const refused = use(nodeFiles, folder);
      await expect(refused).rejects.toMatchObject({ code: "TRB-DATA-VERSION" });
      await expect(refused).rejects.toThrow("9.8.7");
      await expect(refused).rejects.toThrow(packageVersion);
    }
    expect(await says()).toEqual(newer);
  });

  test("an older one is upgraded step by step, from where it stands", async () => {
    await say({ format: 1, writer: "0.0.1" });
    await openData(nodeFiles, folder, [step(0), step(1), step(2)]);
    expect(run).toEqual([1, 2]);
    expect(await says()).toEqual({ format: 3, writer: packageVersion });
    await openData(nodeFiles, folder, [step(0), step(1), step(2)]);
    expect(run).toEqual([1, 2]);
  });

  test("one from before formats were counted is upgraded from the beginning", async () => {
    await mkdir(join(folder, "stream"));
    await openData(nodeFiles, folder, [step(0), step(1)]);
    expect(run).toEqual([0, 1]);
    await rm(join(folder, "format.json"));
    await openData(nodeFiles, folder);
    expect((await says()).format).toBe(UPGRADES.length);
  });

  test("a step that fails is run again, those before it are not", async () => {
    await mkdir(join(folder, "lake"));
    let broken = true;
    const flaky: UpgradeStep = async () => {
      if (broken) throw new Error("EIO");
      run.push(1);
    };
    await expect(openData(nodeFiles, folder, [step(0), flaky])).rejects.toThrow("EIO");
    expect((await says()).format).toBe(1);
    broken = false;
    await openData(nodeFiles, folder, [step(0), flaky]);
    expect(run).toEqual([0, 1]);
  });

  test("of several processes that start together one upgrades", async () => {
    await mkdir(join(folder, "lake"));
    const slow: UpgradeStep = async () => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      run.push(0);
    };
    await Promise.all([1, 2, 3].map(() => openData(nodeFiles, folder, [slow])));
    expect(run).toEqual([0]);
  });

  test("what an earlier version has parked is landed by that one before an upgrade", async () => {
    await say({ format: 1, writer: "0.0.1" });
    await mkdir(join(folder, "parked", "t.v1.Thing"), { recursive: true });
    await mkdir(join(folder, "parked", "t.v1.Other"));
    const segment = join(folder, "parked", "t.v1.Other", "000000000001.log");
    await writeFile(segment, "TRBPARK1");
    const error = await openData(nodeFiles, folder).catch((e: unknown) => e);
    expect(error).toMatchObject({ code: "TRB-DATA-VERSION", message: expect.stringContaining("t.v1.Other") });
    expect((await says()).format).toBe(1);
    await rm(segment);
    await openData(nodeFiles, folder);
    expect((await says()).format).toBe(UPGRADES.length);
  });

  test("a damaged format.json is told, not taken for an old folder", async () => {
    for (const content of ["", "{", "[]", '{"format":"1","writer":"x"}', "null"]) {
      await writeFile(join(folder, "format.json"), content);
      await expect(openData(nodeFiles, folder)).rejects.toMatchObject({ code: "TRB-CONFIG" });
    }
  });
});
