import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { LIMITS, writeFile } from "../../test/support/sources.js";
import { Duck } from "../base/duckdb.js";
import type { Reject } from "./formats.js";
import { count, inspect, lend } from "./inspect.js";
import { LocalRoot } from "./local-root.js";
import type { Request } from "./protocol.js";
import { SourceProcess } from "./source-process.js";

const MiB = 1024 * 1024;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "source-process-"));
  mkdirSync(at("exports"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));
const at = (...names: string[]) => join(folder, ...names);
const place = (path = "") => ({ root: new LocalRoot("exports", at("exports"), at("data")), path });
const list = (path: string) => inspect(place(path), {}, LIMITS);

describe("a process that reads", () => {
  it("counts rows, and tells rejects with what they were", async () => {
    writeFile(at("exports", "x.ndjson"), '{"a":1}\n{"a"\n{"a":2}\n'.repeat(10_000));
    const manifest = await list("x.ndjson");
    const rejects: Reject[] = [];
    const counted = await count(place(), manifest, 0, LIMITS, { onRejects: (some) => rejects.push(...some) });
    expect(counted).toEqual({ rows: 20_000, rejects: 10_000, bytes: manifest.bytes });
    expect(rejects.every(({ row, offset }, i) => row === 3 * i + 1 && offset === 21 * i + 8)).toBe(true);
    expect(
      await count(place(), manifest, 0, LIMITS, { from: { row: 29_998, offset: manifest.bytes - 13 } }),
    ).toMatchObject({
      rows: 1,
      rejects: 1,
    });
  });

  it("is an error of the file when its engine runs out of memory", async () => {
    const duck = await Duck.create({ memoryBytes: 512 * MiB });
    const sql = `COPY (SELECT repeat('x', 60000000) AS text) TO '${at("exports", "x.parquet")}'`;
    await duck.with((connection) => connection.run(sql)).finally(() => duck.close());
    const tight = { ...LIMITS, readerMemoryBytes: 16 * MiB };
    await expect(count(place(), await list("x.parquet"), 0, tight)).rejects.toMatchObject({
      code: "TRB-SOURCE-MEMORY",
    });
  });

  it("that is killed, or gets nowhere, ends the call and nothing else", async () => {
    writeFile(at("exports", "x.csv"), `a\n${"1\n".repeat(300_000)}`);
    const manifest = await list("x.csv");
    const killed = async (idleMs: number, kill: (reader: SourceProcess) => void) => {
      const reader = new SourceProcess({ memoryBytes: 64 * MiB, idleMs });
      await lend(place(), manifest, 0, LIMITS, undefined, (unit) => {
        const request: Request = { type: "count", unit, from: { row: 0 } };
        const call = reader.call(request);
        kill(reader);
        return call;
      }).finally(() => reader.ended);
    };
    await expect(killed(60_000, ({ pid }) => process.kill(pid!, "SIGKILL"))).rejects.toMatchObject({
      code: "TRB-SOURCE-READER",
    });
    await expect(killed(60_000, (reader) => reader.end())).rejects.toMatchObject({
      code: "TRB-SOURCE-READER",
    });
    await expect(killed(1_000, ({ pid }) => process.kill(pid!, "SIGSTOP"))).rejects.toMatchObject({
      code: "TRB-SOURCE-STALLED",
    });
    expect(await count(place(), manifest, 0, LIMITS)).toMatchObject({ rows: 300_000 });
  });
});
