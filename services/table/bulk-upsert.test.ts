import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { TableWriter, type Write } from "../../test/support/table-writers.js";
import { NEVER, openWorkbench } from "../../test/support/tables.js";
import { layout } from "../base/paths.js";

const { folder, store, duck, freshRoot } = await openWorkbench();

const writers: TableWriter[] = [];
afterEach(async () => {
  for (const writer of writers.splice(0)) await writer.close();
});

async function open(root: string): Promise<TableWriter> {
  const writer = await TableWriter.open(store, duck, root, NEVER);
  writers.push(writer);
  return writer;
}

const rows = (tenant: string, ids: readonly string[], version = 1): Write[] =>
  ids.map((id) => ({ tenant, id, version, operation: 1, content: 1n }));
const NOWHERE = new Map<string, string>();
const moves = (from: number): { from: Map<string, string>; to: Map<string, string> } => ({
  from: from === 0 ? NOWHERE : new Map([["job.0", String(from)]]),
  to: new Map([["job.0", String(from + 1)]]),
});

test("nothing is read of files that hold none of the tenants, nor of the job's own with other keys", async () => {
  const root = freshRoot();
  const [other, mine] = [await open(root), await open(root)];
  await other.upsert(rows("acme", ["a", "b"]));
  await mine.table.refresh();
  const files = new Set(mine.table.snapshot.files.map(({ path }) => path));
  const loseFiles = () => {
    for (const path of files) rmSync(join(layout(folder).lake, root, path), { force: true });
  };
  loseFiles();
  expect(await mine.bulk(rows("globex", ["a", "c"]), moves(0))).toMatchObject({ kind: "committed", live: 2 });
  for (const { path } of mine.table.snapshot.files) files.add(path);
  loseFiles();
  expect(await mine.bulk(rows("globex", ["d", "f"]), moves(1))).toMatchObject({ kind: "committed", live: 2 });
  // One that could be in there: it is looked for.
  await expect(mine.bulk(rows("globex", ["b"]), moves(2))).rejects.toThrow();
});

test("rows win and lose key by key against rows and tombstones that stand, and may come twice", async () => {
  const root = freshRoot();
  const [other, mine] = [await open(root), await open(root)];
  await other.upsert(rows("acme", ["a", "b"], 5));
  await other.upsert([{ tenant: "acme", id: "c", version: 5, operation: 3, content: 0n }]);
  await mine.table.refresh();
  const brought = [
    ...rows("acme", ["a", "c"], 4),
    ...rows("acme", ["b", "d"], 6),
    { tenant: "acme", id: "e", version: 6, operation: 3, content: 0n },
  ];
  expect(await mine.bulk(brought, moves(0))).toMatchObject({
    kind: "committed",
    live: 2,
    tombstones: 1,
    lost: 2,
  });
  expect(await mine.bulk(brought, moves(1))).toMatchObject({
    kind: "committed",
    live: 0,
    tombstones: 0,
    lost: 5,
  });
  expect(await mine.bulk(rows("acme", ["z"]), moves(0))).toEqual({ kind: "conflict", reason: "position" });
  await other.upsert(rows("acme", ["e"], 5));
  expect(await other.rows()).toEqual(["acme|a|v5-1", "acme|b|v6-1", "acme|d|v6-1"]);
});

test("a row that was put in again beside the tombstone that it equals is replaced", async () => {
  const root = freshRoot();
  const [other, mine] = [await open(root), await open(root)];
  const ids = ["a", "b", "c"];
  await other.upsert(rows("acme", ids, 5).map((row) => ({ ...row, hidden: true })));
  await other.upsert(rows("acme", ids, 5), { again: true });
  await mine.table.refresh();
  await mine.bulk(rows("acme", ["a"], 6), moves(0));
  await other.table.refresh();
  await other.upsert([{ tenant: "acme", id: "b", version: 6, operation: 3, content: 0n }]);
  expect(await mine.rows()).toEqual(["acme|a|v6-1", "acme|c|v5-1"]);
  expect([...(await mine.checkIndex()), ...(await other.checkIndex())]).toEqual([]);
});
