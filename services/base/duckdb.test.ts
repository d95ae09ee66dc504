import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { chunksOf, Duck, rowsOf } from "./duckdb.js";
import { isOutOfMemory } from "./engine-error.js";

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

test("rows that cannot be read to the end are not taken for all there are, and the connection is of use after them", async () => {
  const duck = await Duck.create({ memoryBytes: 64 * 1024 * 1024 });
  try {
    await duck.with(async (connection) => {
      const read = async (last: number): Promise<number> => {
        let rows = 0;
        const sql = `SELECT CASE WHEN i = ${last} THEN error('bad') ELSE i::VARCHAR END FROM range(400000) r(i)`;
        for await (const chunk of chunksOf(connection, sql)) rows += chunk.rowCount;
        return rows;
      };
      expect(await read(400_000)).toBe(400_000);
      expect(await read(399_999).catch(isOutOfMemory)).toBe(true);
      expect(await read(0).catch(isOutOfMemory)).toBe(false);
      for await (const chunk of chunksOf(connection, "FROM range(400000)")) if (chunk.rowCount > 0) break;
      expect(await read(400_000)).toBe(400_000);
    });
  } finally {
    duck.close();
  }
});
