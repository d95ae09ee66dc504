import { readdirSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startS3 } from "../servers/s3.js";
import { Oracle } from "../support/oracle.js";
import { actualRow, digestOf, type TableName } from "../support/oracle-tables.js";
import { newBucket, onS3, readOnS3 } from "../support/s3-lake.js";
import { changeLogs } from "../support/shared-data.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, untilLanded } from "../support/stack.js";

const [log] = changeLogs().toSorted((a, b) => a.lines.length - b.lines.length);
const lines = log!.lines;
const half = Math.floor(lines.length / 2);

let s3: Awaited<ReturnType<typeof startS3>>;
let folder: string;
beforeAll(async () => {
  s3 = await startS3();
  folder = await temporaryFolder();
}, 900_000);
afterAll(async () => {
  await s3?.stop();
  await removeFolder(folder);
});

async function publish(server: Server, data: string, events: readonly string[]): Promise<void> {
  const input = join(folder, "events.ndjson");
  await writeFile(input, `${events.join("\n")}\n`);
  const token = await makeToken(data, "producer");
  const args = ["publish", input, "--url", server.url, "--token", token, "--batch", "500", "--json"];
  const published = await cli(args);
  expect(published.stderr, published.stdout).not.toContain("TRB-");
  expect(JSON.parse(published.stdout)).toMatchObject({ accepted: events.length, rejected: 0 });
}

async function ask(server: Server, data: string, sql: string): Promise<unknown[][]> {
  const token = await makeToken(data, "analyst", log!.name);
  const answer = await cli(["sql", sql, "--url", server.url, "--token", token, "--json"]);
  expect(answer.code, answer.stderr).toBe(0);
  return (JSON.parse(answer.stdout) as { rows: unknown[][] }).rows;
}

describe("a lake on S3", () => {
  it("lands, answers, and goes on where it was with an emptied cache and elsewhere; deltalake reads it", async () => {
    const data = join(folder, "data");
    const place = { endpoint: s3.endpoint, bucket: await newBucket(s3.endpoint), prefix: "lakes/test" };
    const env = onS3(place);
    const counts = "select count(*), sum(lines_added) from files";
    let server = await Server.start("up", data, env);
    try {
      await publish(server, data, lines.slice(0, half));
      await untilLanded(data, 120, env);
      expect(await ask(server, data, counts)).toHaveLength(1);
    } finally {
      expect(await server.stop()).toBe(0);
    }
    expect(readdirSync(data)).not.toContain("lake");
    await removeFolder(join(data, "cache"));

    server = await Server.start("up", data, env);
    try {
      // Some of it for the second time.
      await publish(server, data, lines.slice(half - 200));
      await untilLanded(data, 120, env);
      expect(await ask(server, data, counts)).toEqual([
        [String(log!.answers.liveFiles), String(log!.answers.linesAdded)],
      ]);
    } finally {
      expect(await server.stop()).toBe(0);
    }
    // From another machine, as it were.
    const verified = await cli(["table", "verify", "--data", data, "--json"], env);
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, problems: [] });
    const shown = await cli(["table", "ls", "--data", join(folder, "elsewhere"), "--json"], env);
    expect(shown.code, shown.stderr).toBe(0);
    expect(readdirSync(join(data, "staging")).filter((name) => name.startsWith("cli-"))).toEqual([]);

    const oracle = new Oracle();
    for (const line of lines) oracle.applyLine(line);
    for (const name of ["scm.files", "scm.commits"] satisfies TableName[]) {
      const rows = await readOnS3(place, `refined/${name.replace(".", "/")}`);
      expect(digestOf(rows.map((row) => actualRow(name, row)))).toBe(oracle.digest(name));
    }
  });
});
