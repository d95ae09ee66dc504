import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, until } from "../support/stack.js";

/** Those who read the stream for themselves, as processes: `tributary tail` and the search indexer of the examples. */

const INDEXER = join(packageRoot, "examples", "search-indexer", "indexer.mjs");
const run = promisify(execFile);

let data: string;
let bus: Server;
let token: string;
beforeEach(async () => {
  data = await temporaryFolder();
  token = await makeToken(data, "producer");
  bus = await Server.start("bus", data);
});
afterEach(async () => {
  await bus.stop();
  await removeFolder(data);
});

interface Issue {
  readonly tenant: string;
  readonly key: string;
  readonly version: number;
  /** A delete without. */
  readonly summary?: string;
}

async function publish(...issues: Issue[]): Promise<void> {
  const events = issues.map(({ tenant, key, version, summary }) => ({
    tenantId: tenant,
    entityType: "tracker.v1.Issue",
    entityId: key,
    operation: summary === undefined ? "OPERATION_DELETED" : "OPERATION_UPDATED",
    version: String(version),
    ...(summary === undefined
      ? {}
      : { payload: { "@type": "type.googleapis.com/tracker.v1.Issue", key, summary } }),
  }));
  const answer = await fetch(`${bus.url}/v1/events`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify(events),
  });
  expect(await answer.json()).toMatchObject({ accepted: issues.length });
}

interface Tailed {
  readonly tenantId: string;
  readonly entityId: string;
  readonly operation: string;
  readonly version: string;
  readonly payload?: { readonly summary: string };
}

const tail = async (...args: string[]): Promise<Tailed[]> => {
  const { stdout, stderr, code } = await cli(["tail", "--data", data, "--json", "--no-follow", ...args]);
  expect(stderr).toBe("");
  expect(code).toBe(0);
  return stdout
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Tailed);
};

describe("tail", () => {
  test("shows what there is, of whom is asked for, and goes on where its checkpoint says", async () => {
    await publish(
      { tenant: "acme", key: "A-1", version: 1, summary: "one" },
      { tenant: "globex", key: "G-1", version: 1, summary: "other" },
    );
    const checkpoint = join(data, "tail.json");
    const args = ["--from", "oldest", "--checkpoint", checkpoint];
    const all = await tail(...args);
    expect(all.map(({ entityId }) => entityId).sort()).toEqual(["A-1", "G-1"]);
    expect(await tail(...args)).toEqual([]);
    await publish({ tenant: "acme", key: "A-1", version: 2 });
    expect(await tail(...args)).toMatchObject([{ entityId: "A-1", operation: "DELETED", version: "2" }]);
    expect((await tail("--from", "oldest", "--tenant", "acme")).map(({ tenantId }) => tenantId)).toEqual([
      "acme",
      "acme",
    ]);
    expect(await tail("--from", "oldest", "--type", "scm.v1.File")).toEqual([]);
  });

  test("shows payloads that lie in the store, and why one is not there", async () => {
    const summary = "s".repeat(1_100_000);
    await publish({ tenant: "acme", key: "A-1", version: 1, summary });
    expect((await tail("--from", "oldest")).map(({ payload }) => payload?.summary === summary)).toEqual([
      true,
    ]);
    await rm(join(data, "lake", "offload"), { recursive: true });
    expect(await tail("--from", "oldest")).toMatchObject([
      { entityId: "A-1", payloadFault: { code: "TRB-EVENT-PAYLOAD-MISSING" } },
    ]);
  });

  test("waits for what comes, and ends on a signal", async () => {
    const child = spawn(
      process.execPath,
      [join(packageRoot, "dist/services/main/cli.js"), "tail", "--data", data, "--from", "oldest"],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    let shown = "";
    child.stdout.on("data", (text) => {
      shown += String(text);
    });
    await publish({ tenant: "acme", key: "A-1", version: 1, summary: "one" });
    await until("the first event", async () => shown.includes("A-1"));
    await publish({ tenant: "acme", key: "A-2", version: 1, summary: "two" });
    await until("the second event", async () => shown.includes('acme  tracker.v1.Issue  "A-2"  UPDATED  v1'));
    child.kill("SIGINT");
    expect(await once(child, "exit")).toEqual([0, null]);
  });
});

test("the search indexer finds what stands, of one tenant, whatever is killed and in what order events come", async () => {
  const index = join(data, "index.json");
  const environment = { ...process.env, TRIBUTARY_DATA: data };
  const search = async (tenant: string, text: string) => {
    const args = [INDEXER, "search", "--index", index, "--tenant", tenant, text];
    const { stdout } = await run(process.execPath, args, { env: environment });
    return stdout
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => (JSON.parse(line) as { entity: string }).entity)
      .sort();
  };
  const catchUp = () =>
    run(process.execPath, [INDEXER, "follow", "--index", index, "--no-follow"], { env: environment });
  await publish(
    { tenant: "acme", key: "A-1", version: 2, summary: "a heron by the river" },
    { tenant: "acme", key: "A-2", version: 5 },
    { tenant: "globex", key: "G-1", version: 1, summary: "herons elsewhere" },
  );
  await catchUp();
  expect(await search("acme", "heron")).toEqual(["A-1"]);
  await publish(
    { tenant: "acme", key: "A-1", version: 1, summary: "an older bittern" },
    { tenant: "acme", key: "A-2", version: 4, summary: "a heron that was deleted since" },
    { tenant: "acme", key: "A-3", version: 1, summary: "another heron" },
  );
  // Killed at some moment: it goes on where its file says.
  const killed = spawn(process.execPath, [INDEXER, "follow", "--index", index], {
    env: environment,
    stdio: "ignore",
  });
  const before = await readFile(index, "utf8");
  await until("some progress", async () => (await readFile(index, "utf8")) !== before);
  killed.kill("SIGKILL");
  await once(killed, "exit");
  await catchUp();
  expect(await search("acme", "heron")).toEqual(["A-1", "A-3"]);
  expect(await search("acme", "bittern")).toEqual([]);
  expect(await search("globex", "herons")).toEqual(["G-1"]);
  expect(await search("initech", "heron")).toEqual([]);
  expect(existsSync(`${index}.new`)).toBe(false);
});
