import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadConfig } from "../../services/base/config.js";
import { encodeEvent } from "../../services/contracts/encode-event.js";
import { EventBatch } from "../../services/ingest/event-batch.js";
import { openContext } from "../../services/ingest/ingest.js";
import { withStore } from "../../services/main/compose/runtime.js";
import { injure } from "../support/injure.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

const TYPE = "scm.v1.File";
const MODEL = "scm.files";

/** An operator's hands, beside a running server. */
describe("raw show, replay and repair on the command line", () => {
  let data: string;
  let server: Server;
  let producer: string;

  beforeAll(async () => {
    data = join(await temporaryFolder(), "data");
    server = await Server.start("up", data);
    producer = await makeToken(data, "producer");
  });
  afterAll(async () => {
    await server?.stop();
    await removeFolder(join(data, ".."));
  });

  async function publish(tenant: string, entityId: string, version: number, author: string): Promise<void> {
    const payload = { "@type": `type.googleapis.com/${TYPE}`, path: entityId, lastAuthor: author };
    const event = {
      tenantId: tenant,
      entityType: TYPE,
      entityId,
      operation: "OPERATION_UPDATED",
      version,
      payload,
    };
    const response = await fetch(`${server.url}/v1/events`, {
      method: "POST",
      headers: { authorization: `Bearer ${producer}`, "content-type": "application/json" },
      body: JSON.stringify([event]),
    });
    expect(((await response.json()) as { accepted: number }).accepted).toBe(1);
  }

  async function json(...args: string[]): Promise<Record<string, unknown>> {
    const { code, stdout, stderr } = await cli([...args, "--data", data, "--json"]);
    expect(code, `${args.join(" ")}: ${stdout}${stderr}`).toBe(0);
    return JSON.parse(stdout) as Record<string, unknown>;
  }
  const replay = async (...args: string[]) =>
    (await json("replay", "--model", MODEL, ...args)) as {
      readonly report: { readonly difference: { readonly keys: readonly unknown[] } };
    };
  const authors = async (tenant: string): Promise<unknown> => {
    const token = await makeToken(data, "analyst", tenant);
    const sql = "select path, last_author from files order by path";
    const { stdout } = await cli(["sql", sql, "--url", server.url, "--token", token, "--json"]);
    return (JSON.parse(stdout) as { rows: unknown }).rows;
  };

  test("tell what happened to an entity, find what is wrong, and mend it", async () => {
    for (const tenant of ["acme", "zeta"])
      for (const [id, version] of [
        ["a", 1],
        ["a", 2],
        ["b", 1],
      ] as const)
        await publish(tenant, id, version, `${tenant} ${version}`);
    await untilLanded(data);
    const shown = await json("raw", "show", "--tenant", "acme", "--type", TYPE, "--id", "a");
    expect(shown).toMatchObject({
      events: 2,
      shown: [
        { version: "1", wins: false, payload: { lastAuthor: "acme 1" } },
        { version: "2", wins: true, payload: { lastAuthor: "acme 2" } },
      ],
    });
    expect(await json("replay", "--model", MODEL, "--plan")).toMatchObject({ plan: { rows: 6 } });
    expect((await replay()).report.difference.keys).toEqual([]);

    const config = loadConfig({ data }, { env: {} });
    await withStore(config, async (store) => {
      const log = pino({ level: "silent" });
      const context = await openContext({ config, store, log, registry: new Registry(), folder: "injury" });
      const batch = new EventBatch(TYPE, "nowhere");
      for (const [i, tenant] of ["acme", "zeta"].entries()) {
        const about = { tenantId: tenant, entityType: TYPE, entityId: "b" };
        const bytes = encodeEvent({
          ...about,
          operation: 2,
          version: 9,
          payload: { value: new Uint8Array() },
        });
        batch.add(bytes, 0, bytes.length, "0", String(i), Date.now());
      }
      await injure(context, MODEL, batch);
      context.duck.close();
    });
    expect((await replay()).report.difference).toMatchObject({
      missing: 0,
      extra: 0,
      changed: 2,
      keys: [
        { tenant: "acme", entityId: "b", kind: "changed" },
        { tenant: "zeta", entityId: "b", kind: "changed" },
      ],
    });
    await replay("--tenant", "acme", "--repair");
    expect((await replay()).report.difference).toMatchObject({
      changed: 1,
      keys: [{ tenant: "zeta", entityId: "b" }],
    });
    // What was known of the entity is forgotten everywhere: an event below the wrong version wins again.
    await publish("acme", "b", 2, "acme 2");
    await until("the event to show", async () =>
      JSON.stringify(await authors("acme")).includes('["b","acme 2"]'),
    );
    await replay("--swap");
    expect(await authors("zeta")).toEqual([
      ["a", "zeta 2"],
      ["b", "zeta 1"],
    ]);
    const { audit } = (await json("audit")) as { audit: { action: string }[] };
    expect(audit.map(({ action }) => action)).toEqual(
      expect.arrayContaining(["raw show", "replay compare", "replay repair", "replay swap"]),
    );
    const { code, stderr } = await cli([
      "replay",
      "--model",
      MODEL,
      "--tenant",
      "acme",
      "--swap",
      "--data",
      data,
    ]);
    expect([code, stderr]).toEqual([1, expect.stringContaining("TRB-REPLAY-ORDER")]);
  });

  test("a refined table that is dropped comes back by one command, while events land", async () => {
    rmSync(join(data, "lake", "refined", "scm", "files"), { recursive: true });
    for (const how of [["--compare"], ["--swap"], ["--repair", "--tenant", "acme"], ["--swap", "--plan"]]) {
      const { code, stderr } = await cli(["replay", "--model", MODEL, ...how, "--data", data]);
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(/TRB-TABLE-NOT-FOUND.* model: .*table repair/),
      ]);
    }
    await publish("acme", "c", 1, "acme 1");
    expect(await json("table", "repair", MODEL)).toMatchObject({ left: [] });
    await publish("acme", "d", 1, "acme 1");
    await until(
      "all rows to be there",
      async () =>
        JSON.stringify(await authors("acme")) ===
        JSON.stringify([
          ["a", "acme 2"],
          ["b", "acme 2"],
          ["c", "acme 1"],
          ["d", "acme 1"],
        ]),
    );
    expect((await replay()).report.difference.keys).toEqual([]);
    expect((await cli(["table", "verify", "--data", data])).code).toBe(0);
  });

  test("one whose process is killed again and again is gone on with", async () => {
    const refined = join(data, "lake", "refined", "scm", "files");
    // What serves may lie in such a folder, too; a table's log is in that of one beside it alone.
    const beside = () =>
      readdirSync(refined)
        .filter((name) => name.startsWith("rebuilt-") && existsSync(join(refined, name, "_delta_log")))
        .flatMap((name) => readdirSync(join(refined, name, "_delta_log")));
    const moments: readonly (() => boolean)[] = [
      () => true,
      () => beside().includes("00000000000000000000.json"),
      () => beside().includes("00000000000000000001.json"),
    ];
    const killed: number[] = [];
    const job = () => startedBy(server.process.pid!).find((pid) => commandOf(pid).includes("job-child"));
    let done = false;
    const killing = (async () => {
      while (!done && killed.length < moments.length) {
        const pid = job();
        if (pid !== undefined && !killed.includes(pid) && moments[killed.length]!()) {
          process.kill(pid, "SIGKILL");
          killed.push(pid);
        }
        await sleep(1);
      }
    })();
    const { report } = await replay("--swap").finally(() => {
      done = true;
    });
    await killing;
    expect(killed).toHaveLength(moments.length);
    expect(report.difference.keys).toEqual([]);
    expect((await replay()).report.difference.keys).toEqual([]);
    expect(await authors("zeta")).toEqual([
      ["a", "zeta 2"],
      ["b", "zeta 1"],
    ]);
    expect(beside()).toEqual([]);
    expect((await cli(["table", "verify", "--data", data])).code).toBe(0);
  });
});

/** Processes that one has started, and those that they have. */
function startedBy(pid: number): number[] {
  try {
    const own = readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").split(" ").filter(Boolean);
    return own.map(Number).flatMap((child) => [child, ...startedBy(child)]);
  } catch {
    return [];
  }
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return "";
  }
}
