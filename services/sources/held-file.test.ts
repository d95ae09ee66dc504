import { mkdtempSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { readAll, unitOf, writeFile } from "../../test/support/sources.js";
import { Duck, rowsOf } from "../base/duckdb.js";
import { HeldFile } from "./held-file.js";
import { SourceReader } from "./reader.js";
import { localIdentity } from "./unit.js";

/** Whoever writes exports may have names lead elsewhere while we look away: to what others have exported, or the lake. */

let folder: string;
let duck: Duck;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "held-"));
  duck = await Duck.create({ memoryBytes: 64 * 1024 * 1024 });
});
afterEach(() => {
  duck.close();
  rmSync(folder, { recursive: true, force: true });
});
const at = (...names: string[]) => join(folder, ...names);

const CONTENTS = {
  parquet: async (path: string, tenant: string) => {
    writeFile(path, "");
    await duck.with((connection) =>
      connection.run(`COPY (SELECT '${tenant}' AS tenant FROM range(1000)) TO '${path}' (FORMAT parquet)`),
    );
  },
  ndjson: async (path: string, tenant: string) =>
    writeFile(path, `${JSON.stringify({ tenant })}\n`.repeat(1000)),
};

/** Has something else stand at `path`, until what it returns is called. */
function swap(path: string, target: string): () => void {
  renameSync(path, `${path}.aside`);
  symlinkSync(target, path);
  let isBack = false;
  return () => {
    if (isBack) return;
    isBack = true;
    rmSync(path);
    renameSync(`${path}.aside`, path);
  };
}

describe.each(["parquet", "ndjson"] as const)("a file of %s", (format) => {
  const own = () => at("exports", "acme", `x.${format}`);
  const others = () => at("lake", "acme", `x.${format}`);
  beforeEach(async () => {
    await CONTENTS[format](own(), "acme");
    await CONTENTS[format](others(), "globex");
  });

  it.each([
    ["its name", own, others],
    ["a folder on the way to it", () => dirname(own()), () => dirname(others())],
  ])(
    "is read as it was listed, or not at all, though %s is a link whenever nobody looks",
    async (_, link, target) => {
      const file = await HeldFile.open(await unitOf(own()));
      const closed = await Duck.sealed(64 * 1024 * 1024, [file.path]);
      let back: () => void = () => undefined;
      const seen: string[] = [];
      try {
        await closed.with(async (connection) => {
          const reader = await SourceReader.open(connection, file, () => back());
          // A text is opened once more when its batches are asked for, a file of columns by each statement.
          if (format === "ndjson") back = swap(link(), target());
          for await (const { sql } of reader.batches()) {
            back = swap(link(), target());
            const rows = await rowsOf(connection, sql).catch(async (error: unknown) => {
              expect((await reader.failure(error)).code).toBe("TRB-SOURCE-CHANGED");
              return [];
            });
            back();
            for (const [, value] of rows) seen.push(String(value));
          }
        });
        expect(seen.filter((value) => !value.includes("acme"))).toEqual([]);
        // The engine asks what its file is called, and then it is none that it may read.
        expect(seen.length).toBe(format === "parquet" ? 0 : 1000);
      } finally {
        closed.close();
        await file.close();
      }
    },
  );

  it("that was listed by way of a link is not opened", async () => {
    const unit = { ...(await unitOf(own())), identity: await localIdentity(others()) };
    const back = swap(at("exports", "acme"), at("lake", "acme"));
    const opening = HeldFile.open(unit).finally(back);
    await expect(opening).rejects.toMatchObject({ code: "TRB-SOURCE-CHANGED" });
  });

  it("is itself, whatever pattern its name is", async () => {
    for (const name of ["[a-z]", "*", "?", "**"]) {
      const path = at("exports", "tenant=*", `${name}.${format}`);
      await CONTENTS[format](path, "acme");
      await CONTENTS[format](at("exports", "tenant=b", `${name}.${format}`), "globex");
      await CONTENTS[format](at("exports", "tenant=*", `b.${format}`), "globex");
      const { rows } = await readAll(await unitOf(path));
      expect(rows.length, name).toBe(1000);
      expect(String(rows[0]), name).toContain("acme");
    }
  });
});
