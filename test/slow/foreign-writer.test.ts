import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { readForeign, runForeign } from "../support/foreign.js";
import { changeLogs } from "../support/shared-data.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, untilLanded } from "../support/stack.js";

/** I4 and I6: an engine that does not know tombstones may read refined tables, but must not rewrite their files. */
it("another engine reads a refined table and refuses to maintain it", async () => {
  const data = await temporaryFolder();
  try {
    const [log] = changeLogs();
    const server = await Server.start("up", data);
    const token = await makeToken(data, "producer");
    const input = join(data, "events.ndjson");
    // Landed in halves: maintenance of a table of a single file would find nothing to do, and be refused nothing.
    const half = Math.ceil(log!.lines.length / 2);
    for (const lines of [log!.lines.slice(0, half), log!.lines.slice(half)]) {
      await writeFile(input, `${lines.join("\n")}\n`);
      await cli(["publish", input, "--url", server.url, "--token", token, "--batch", "50"]);
      await untilLanded(data);
    }
    expect(await server.stop()).toBe(0);
    const table = join(data, "lake", "refined", "scm", "files");
    const raw = join(data, "lake", "raw", "scm.v1.File");
    // Vacuum, too, is only refused where it would do something.
    for (const folder of [table, raw]) await writeFile(join(folder, "left-behind.parquet"), "");
    const before = await readForeign(table);
    expect(before).toHaveLength(log!.answers.liveFiles);
    const outcome = JSON.parse(await runForeign("foreign_writer.py", table)) as Record<string, string>;
    expect(Object.keys(outcome)).toEqual(["optimize", "delete", "vacuum"]);
    for (const [attempt, refusal] of Object.entries(outcome))
      expect(refusal, attempt).toContain("tributary.upsert");
    expect(await readForeign(table)).toEqual(before);
    // Raw only grows, and by us.
    const events = await readForeign(raw, "SELECT count(*) AS n FROM t");
    const tried = JSON.parse(await runForeign("foreign_writer.py", raw)) as Record<string, string>;
    expect(Object.keys(tried)).toEqual(["optimize", "delete", "vacuum"]);
    for (const [attempt, refusal] of Object.entries(tried)) {
      expect(refusal, attempt).toMatch(/tributary\.append|append-only/);
    }
    expect(await readForeign(raw, "SELECT count(*) AS n FROM t")).toEqual(events);
    for (const folder of [table, raw]) expect(await readdir(folder)).toContain("left-behind.parquet");
    const verified = await cli(["table", "verify", "scm.files", "--data", data, "--json"]);
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true });
  } finally {
    await removeFolder(data);
  }
});
