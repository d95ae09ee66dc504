import { afterAll, beforeAll, expect, test } from "vitest";
import { QueryService } from "../../services/query/query-service.js";
import { asker, createLake, others, type TestLake } from "../support/query-lake.js";

let lake: TestLake;
let service: QueryService;
beforeAll(async () => {
  lake = await createLake([asker, ...others]);
  service = new QueryService(lake, {
    timeoutMs: 2000,
    memoryBytes: 256 * 2 ** 20,
    maxRows: 1000,
    maxSqlBytes: 65536,
    workers: 2,
    maxWaiting: 4,
  });
});
afterAll(async () => {
  await service.close();
  lake.close();
});
test("smoke", async () => {
  for (const sql of [
    "select 1",
    "select count(*), min(path) from files",
    "select count(*) from files",
    "select * from scm.files order by entity_id limit 2",
    "select * from issues limit 1",
    "select foo from files",
    "select cast(path as int) from files",
    "select len(range(3000000000))",
    "select count(*) from range(10000000) a(i), range(10000000) b(j) where a.i*b.j%7=3",
    "select * from range(100000)",
    "select 1",
    "select repeat('x',100000000) from range(20)",
    "select 1;",
    "select a -> 'b' from",
    "select 1 -- hi",
    "select path from files where modified_at > $1 limit $n",
  ]) {
    const t = performance.now();
    try {
      const a = await service.run({ tenant: "acme", sql, format: "json", numbers: "exact" });
      console.log(sql, JSON.stringify(a).slice(0, 300), (performance.now() - t).toFixed(0));
    } catch (e) {
      console.log(
        sql,
        (e as Error).message,
        JSON.stringify((e as any).code),
        JSON.stringify((e as any).details),
        (performance.now() - t).toFixed(0),
        (e as any).code === undefined ? e : "",
      );
    }
  }
  for (const [sql, params] of [
    ["select path from files where modified_at > ? order by 1 limit ?", ["2024-02-01", 2]],
    ["select $a + $b, $c", { a: 1, b: 2.5, c: "x" }],
    ["select ?", [9007199254740993n as any]],
    [
      "select list_contains(?, change_count), ? from files limit 1",
      [
        [1, 2],
        ["a", null],
      ],
    ],
    ["select count(*) from files where change_count in (select unnest($1))", [[1, 2]]],
    ["select $1, $1", [true]],
    ["select ?, ?", [null, "it's"]],
  ] as any) {
    try {
      const a = await service.run({ tenant: "acme", sql, params, format: "csv", numbers: "js" });
      console.log(sql, JSON.stringify(a).slice(0, 300));
    } catch (e) {
      console.log(sql, (e as Error).message, (e as any).code === undefined ? e : (e as any).code);
    }
  }
  for (let k = 0; k < 5; k++)
    for (const tenant of ["acme", others[0]!.id, others[1]!.id]) {
      const t = performance.now();
      const a = await service.run({
        tenant,
        sql: "select count(*) from files",
        format: "json",
        numbers: "exact",
      });
      console.log(tenant, a.rows, (performance.now() - t).toFixed(0));
    }
  expect(1).toBe(1);
});
