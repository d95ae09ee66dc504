import { writeFile } from "node:fs/promises";
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
    await writeFile(input, `${log!.lines.join("\n")}\n`);
    await cli(["publish", input, "--url", server.url, "--token", token, "--batch", "50"]);
    await untilLanded(data);
    expect(await server.stop()).toBe(0);
    const table = join(data, "lake", "refined", "scm", "files");
    const before = await readForeign(table);
    expect(before).toHaveLength(log!.answers.liveFiles);
    const outcome = JSON.parse(await runForeign("foreign_writer.py", table)) as Record<string, string>;
    expect(Object.keys(outcome)).toEqual(["optimize", "delete", "vacuum"]);
    for (const refusal of Object.values(outcome)) expect(refusal).toContain("tributary.upsert");
    expect(await readForeign(table)).toEqual(before);
    // Raw only grows, and by us.
    const raw = join(data, "lake", "raw", "scm.v1.File");
    const events = await readForeign(raw, "SELECT count(*) AS n FROM t");
    const tried = JSON.parse(await runForeign("foreign_writer.py", raw)) as Record<string, string>;
    expect(Object.keys(tried)).toEqual(["optimize", "delete", "vacuum"]);
    for (const refusal of Object.values(tried)) expect(refusal).toMatch(/tributary\.append|append-only/);
    expect(await readForeign(raw, "SELECT count(*) AS n FROM t")).toEqual(events);
    const verified = await cli(["table", "verify", "scm.files", "--data", data, "--json"]);
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true });
  } finally {
    await removeFolder(data);
  }
});
