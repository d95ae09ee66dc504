import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { writeProto } from "../../../test/support/lake.js";
import { loadConfig } from "../../base/config.js";
import { UPGRADES } from "../../base/data-format.js";
import { layout } from "../../base/paths.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { runIngest } from "./ingest-process.js";

let data: string;
beforeEach(() => {
  data = mkdtempSync(join(tmpdir(), "tributary-ingest-"));
});
afterEach(() => rmSync(data, { recursive: true }));

test("ingest that is started again under an older server leaves a folder of a newer version alone", async () => {
  const config = loadConfig({ data, log: { level: "silent" } }, { env: {} });
  const project = { registry: ProtoRegistry.load([writeProto(join(data, "proto"))]), models: [] };
  const staged = join(layout(data).staging, "ingest", "of-the-newer.parquet");
  mkdirSync(join(staged, ".."), { recursive: true });
  writeFileSync(staged, "x");
  const say = (format: number) =>
    writeFileSync(join(data, "format.json"), JSON.stringify({ format, writer: "9.9.9" }));
  say(UPGRADES.length + 1);
  await expect(runIngest(config, project)).rejects.toMatchObject({ code: "TRB-DATA-VERSION" });
  expect(existsSync(staged)).toBe(true);
  // The lock is not held either.
  say(UPGRADES.length);
  const ingest = await runIngest(config, project);
  ingest.stop();
  await ingest.done;
});
