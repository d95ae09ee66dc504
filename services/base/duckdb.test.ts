import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Duck, rowsOf } from "./duckdb.js";

test("engines that spill into one folder do so apart from each other, and leave nothing there", async () => {
  const tempFolder = join(mkdtempSync(join(tmpdir(), "tributary-spill-")), "scratch", "ingest");
  try {
    const ducks = [0, 1].map(() => Duck.create({ memoryBytes: 24 * 1024 * 1024, tempFolder }));
    const folders: string[] = [];
    for (const duck of await Promise.all(ducks)) {
      await duck.with(async (connection) => {
        await connection.run("CREATE TEMP TABLE t AS SELECT i, hash(i) AS h FROM range(3000000) r(i)");
        expect(await rowsOf(connection, "SELECT count(*) FROM t WHERE h = hash(i)")).toEqual([[3_000_000n]]);
      });
      folders.push(...readdirSync(tempFolder).filter((name) => !folders.includes(name)));
    }
    expect(folders).toHaveLength(2);
    for (const duck of await Promise.all(ducks)) duck.close();
    expect(readdirSync(tempFolder)).toEqual([]);
  } finally {
    rmSync(tempFolder, { recursive: true });
  }
});
