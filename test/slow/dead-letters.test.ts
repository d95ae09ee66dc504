import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { readForeign } from "../support/foreign.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

/** I8, as an operator meets it: a model that chokes on some events, then a mended one. */
describe("a model that fails on some events", () => {
  let folder: string;
  let data: string;
  let env: NodeJS.ProcessEnv;
  let model: string;
  const total = 300;
  const poison = [17, 150, 151, 299];

  beforeAll(async () => {
    folder = await temporaryFolder();
    data = join(folder, "data");
    const transforms = join(folder, "transforms");
    await cp(join(packageRoot, "transforms"), transforms, { recursive: true });
    env = { TRIBUTARY_TRANSFORMS_DIR: transforms };
    model = join(transforms, "models", "scm", "files.sql");
    const sql = await readFile(model, "utf8");
    await writeFile(
      model,
      sql.replace(
        "payload.extension as extension",
        "cast(payload.extension as integer)::varchar as extension",
      ),
    );
  });
  afterAll(() => removeFolder(folder));

  it("sets them aside, takes in the rest, and applies them after the model was mended", async () => {
    const events = Array.from({ length: total }, (_, i) => ({
      tenantId: "acme",
      entityType: "scm.v1.File",
      entityId: `file-${i}`,
      operation: "OPERATION_CREATED",
      version: "1",
      payload: {
        "@type": "type.googleapis.com/scm.v1.File",
        path: `file-${i}`,
        extension: poison.includes(i) ? "not a number" : String(i),
      },
    }));
    const input = join(folder, "events.ndjson");
    await writeFile(input, `${events.map((event) => JSON.stringify(event)).join("\n")}\n`);
    const first = await Server.start("up", data, env);
    const token = await makeToken(data, "producer");
    const published = await cli(["publish", input, "--url", first.url, "--token", token, "--json"]);
    expect(JSON.parse(published.stdout)).toMatchObject({ accepted: total, rejected: 0 });
    await untilLanded(data);
    // Raw has them; a model that looks for poison takes a little longer, and holds nothing back meanwhile.
    await until("the rest to be in", async () => (await ids()).length === total - poison.length);
    expect(await ids()).toEqual(without(poison));

    const { deadLetters } = await json<{ deadLetters: Letter[] }>("deadletter", "ls");
    expect(deadLetters.map(({ entityId }) => entityId).sort()).toEqual(poison.map((i) => `file-${i}`).sort());
    for (const letter of deadLetters) {
      expect(letter).toMatchObject({ model: "scm.files", code: "TRB-MODEL-FAILED", tenantId: "acme" });
      expect(letter.bytes).toBeGreaterThan(0);
      expect(letter.position).toMatch(/^\d+$/);
    }
    const foreign = await readForeign(join(data, "lake", "dead_letters"));
    expect(foreign.map((row) => String(row.entity_id)).sort()).toEqual(poison.map((i) => `file-${i}`).sort());
    const dry = await json<{ wouldApply: unknown[] }>("deadletter", "redrive", "--dry-run");
    expect(dry.wouldApply).toHaveLength(poison.length);
    const again = await cli(["deadletter", "redrive", "--data", data, "--json"], env);
    expect(again.code).toBe(1);
    expect(JSON.parse(again.stdout)).toMatchObject({ applied: 0 });
    expect((await json<{ deadLetters: Letter[] }>("deadletter", "ls")).deadLetters).toHaveLength(
      poison.length,
    );
    expect(await first.stop()).toBe(0);

    const sql = await readFile(model, "utf8");
    await writeFile(model, sql.replace("cast(payload.extension as integer)::varchar", "payload.extension"));
    const second = await Server.start("up", data, env);
    await until("the rebuild", async () => (await ids()).length === total);
    const done = await json<{ applied: number; failed: unknown[] }>("deadletter", "redrive");
    expect(done).toEqual({ applied: poison.length, failed: [] });
    expect((await json<{ deadLetters: Letter[] }>("deadletter", "ls")).deadLetters).toEqual([]);
    expect(await readForeign(join(data, "lake", "dead_letters"))).toEqual([]);
    expect(await ids()).toEqual(without([]));
    const [raw] = await readForeign(join(data, "lake", "raw", "scm.v1.File"), "SELECT count(*) AS n FROM t");
    expect(raw!.n).toBe(String(total));
    const verified = await cli(["table", "verify", "--data", data, "--json"], env);
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, problems: [] });
    expect(await second.stop()).toBe(0);
  });

  interface Letter {
    readonly model: string;
    readonly code: string;
    readonly tenantId: string;
    readonly entityId: string;
    readonly position: string;
    readonly bytes: number;
  }

  async function json<T>(...args: string[]): Promise<T> {
    const { stdout, stderr, code } = await cli([...args, "--data", data, "--json"], env);
    expect(code, stderr).toBe(0);
    return JSON.parse(stdout) as T;
  }

  const ids = async () =>
    (await readForeign(join(data, "lake", "refined", "scm", "files")))
      .map(({ entity_id }) => String(entity_id))
      .sort();
  const without = (gone: readonly number[]) =>
    Array.from({ length: total }, (_, i) => i)
      .filter((i) => !gone.includes(i))
      .map((i) => `file-${i}`)
      .sort();
});
