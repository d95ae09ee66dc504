import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { LendOptions, ObjectStore } from "../../services/storage/object-store.js";

/** An empty store, and further clients of the same one, as other processes have them. */
export interface ObjectStoreFixture {
  openStore(): Promise<ObjectStore>;
  dispose(): Promise<void>;
}

/** What every adapter of the object-store port has to do. */
export function objectStoreContract(make: () => Promise<ObjectStoreFixture>): void {
  describe("object store", () => {
    let fixture: ObjectStoreFixture;
    let store: ObjectStore;

    beforeEach(async () => {
      fixture = await make();
      store = await fixture.openStore();
    });
    afterEach(() => fixture.dispose());

    const text = async (key: string) => (await store.get(key))?.toString("latin1");
    async function keys(prefix: string, startAfter?: string, from = store): Promise<string[]> {
      const result: string[] = [];
      for await (const { key } of from.list(prefix, startAfter)) result.push(key);
      return result;
    }

    test("what was put is got, by any client", async () => {
      const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
      await store.put("a/b/c.bin", bytes);
      const other = await fixture.openStore();
      expect((await other.get("a/b/c.bin"))?.equals(bytes)).toBe(true);
      expect(await store.get("a/b/absent")).toBeUndefined();
      expect(await store.get("a/b")).toBeUndefined();
      expect(await store.get("a/b/c.bin/d")).toBeUndefined();
    });

    test("an empty object is an object", async () => {
      await store.put("empty", Buffer.alloc(0));
      expect((await store.get("empty"))?.length).toBe(0);
      expect(await store.putIfAbsent("empty", Buffer.from("x"))).toBe("exists");
    });

    test("an object's size and age are told without it", async () => {
      const before = Date.now();
      await store.put("a/b/c.bin", Buffer.alloc(1234));
      const found = await (await fixture.openStore()).stat("a/b/c.bin");
      expect(found).toMatchObject({ key: "a/b/c.bin", bytes: 1234 });
      // Servers tell whole seconds.
      expect(found!.modifiedAt).toBeGreaterThan(before - 2_000);
      expect(found!.modifiedAt).toBeLessThan(Date.now() + 2_000);
      for (const absent of ["a/b", "a/b/c", "a/b/c.bin/d", "x"])
        expect(await store.stat(absent)).toBeUndefined();
      await expect(store.stat("../x")).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    });

    test("a second put replaces the first", async () => {
      await store.put("pointer", Buffer.from("one, longer"));
      await store.put("pointer", Buffer.from("two"));
      expect(await text("pointer")).toBe("two");
    });

    test("putIfAbsent creates once; a loser changes nothing", async () => {
      expect(await store.putIfAbsent("log/0.json", Buffer.from("first"))).toBe("created");
      expect(await store.putIfAbsent("log/0.json", Buffer.from("second"))).toBe("exists");
      expect(await (await fixture.openStore()).putIfAbsent("log/0.json", Buffer.from("third"))).toBe(
        "exists",
      );
      expect(await text("log/0.json")).toBe("first");
      expect(await keys("")).toEqual(["log/0.json"]);
    });

    test("of many that put one key at the same time exactly one wins, and its bytes stay", async () => {
      const clients = [store, await fixture.openStore(), await fixture.openStore()];
      for (let round = 0; round < 20; round++) {
        const key = `race/${round}.json`;
        const outcomes = await Promise.all(
          Array.from({ length: 24 }, (_, i) => clients[i % 3]!.putIfAbsent(key, Buffer.from(`by ${i}`))),
        );
        const winners = outcomes.flatMap((outcome, i) => (outcome === "created" ? [i] : []));
        expect(winners).toHaveLength(1);
        expect(await text(key)).toBe(`by ${winners[0]}`);
      }
    });

    test("a range is bytes from start up to, not including, end", async () => {
      await store.put("r", Buffer.from("0123456789"));
      expect((await store.getRange("r", 2, 5)).toString()).toBe("234");
      expect((await store.getRange("r", 0, 10)).toString()).toBe("0123456789");
      expect((await store.getRange("r", 10, 10)).length).toBe(0);
      await expect(store.getRange("r", 5, 11)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
      await expect(store.getRange("absent", 0, 1)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    });

    test("adopted files are objects, and gone from where they were written", async () => {
      const files = await Promise.all(
        Array.from({ length: 40 }, async (_, i) => {
          const localPath = join(store.staging, `part-${i}.parquet`);
          await writeFile(localPath, `data ${i}`);
          return { localPath, key: `t/x=${i % 3}/part-${i}.parquet` };
        }),
      );
      await store.adopt(files);
      for (const [i, { key }] of files.entries()) expect(await text(key)).toBe(`data ${i}`);
      await expect(store.adopt(files.slice(0, 1))).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
      expect(await text(files[0]!.key)).toBe("data 0");
      await store.adopt([]);
    });

    test("objects are lent as local files, in the order of their keys", async () => {
      await store.put("l/a", Buffer.from("a"));
      await store.put("l/b", Buffer.from("b"));
      const keys = ["l/b", "l/a", "l/b"];
      const read = (from: ObjectStore, options?: LendOptions) =>
        from.withLocal(keys, (paths) => Promise.all(paths.map((path) => readFile(path, "utf8"))), options);
      expect(await read(store)).toEqual(["b", "a", "b"]);
      expect(await read(await fixture.openStore())).toEqual(["b", "a", "b"]);
      await store.put("l/b", Buffer.from("other"));
      expect(await read(await fixture.openStore(), { fresh: true })).toEqual(["other", "a", "other"]);
      expect(await store.withLocal([], async (paths) => paths.length)).toBe(0);
    });

    test("where no object is, what is lent is no file; once it is there, it is", async () => {
      const look = () => store.withLocal(["l/none"], async ([path]) => existsSync(path!));
      expect(await look()).toBe(false);
      await store.put("l/none", Buffer.from("x"));
      expect(await look()).toBe(true);
    });

    test("what a borrower throws comes out, and the files can be lent again", async () => {
      await store.put("l/a", Buffer.from("a"));
      const failure = new Error("mine");
      await expect(store.withLocal(["l/a"], () => Promise.reject(failure))).rejects.toBe(failure);
      await expect(store.withLocal(["l/a"], () => Promise.reject(failure), { fresh: true })).rejects.toBe(
        failure,
      );
      expect(await store.withLocal(["l/a"], ([path]) => readFile(path!, "utf8"))).toBe("a");
    });

    test("what is being written is never listed", async () => {
      await writeFile(join(store.staging, "half-done"), "x");
      await store.put("only", Buffer.from("x"));
      expect(await keys("")).toEqual(["only"]);
    });

    test("keys are listed in order, with their sizes, by any beginning", async () => {
      const all = ["a", "a-b", "a.txt", "a/b", "a/b-c", "a0", "b/c/d", "b/c.d", "b/c/d/e=1/f", "z"];
      const made = all.filter((key) => key !== "a" && key !== "b/c/d"); // no object where another's folder is
      for (const key of [...made].reverse()) await store.put(key, Buffer.alloc(key.length));
      expect(await keys("")).toEqual([...made].sort());
      for (const prefix of ["a", "a/", "a/b", "a.", "b/c", "b/c/", "b/c/d/e", "c", "z", "zz", "x/y/"]) {
        expect(await keys(prefix)).toEqual(made.filter((key) => key.startsWith(prefix)).sort());
        for (const after of ["", "a", "a/b", "a/z", "b/", "b/c", "b/c/d/e=0", "b/c/d/e=1/f", "zzz"]) {
          const expected = made.filter((key) => key.startsWith(prefix) && key > after).sort();
          expect(await keys(prefix, after)).toEqual(expected);
        }
      }
      for await (const { key, bytes } of store.list("")) expect(bytes).toBe(key.length);
    });

    test("a log's newest versions are found after the last known one", async () => {
      const version = (n: number) => `t/_delta_log/${String(n).padStart(20, "0")}.json`;
      for (let n = 0; n < 120; n++) await store.putIfAbsent(version(n), Buffer.from("{}"));
      expect(await keys("t/_delta_log/", version(116))).toEqual([117, 118, 119].map(version));
      expect(await keys("t/_delta_log/")).toHaveLength(120);
    });

    test("what was seen can be confirmed, by any client and any number of times", async () => {
      await store.putIfAbsent("log/0.json", Buffer.from("0"));
      await store.put("log/1.json", Buffer.from("1"));
      const other = await fixture.openStore();
      await other.confirm(["log/0.json", "log/1.json"]);
      await other.confirm(["log/0.json"]);
      await other.confirm([]);
      expect(await text("log/0.json")).toBe("0");
    });

    test("deleted objects are gone; absent ones are no failure; a key can be made anew", async () => {
      await store.put("d/1", Buffer.from("1"));
      await store.put("d/2", Buffer.from("2"));
      await store.delete(["d/1", "d/absent", "nowhere/at/all"]);
      expect(await keys("")).toEqual(["d/2"]);
      expect(await store.get("d/1")).toBeUndefined();
      expect(await store.putIfAbsent("d/1", Buffer.from("again"))).toBe("created");
      await store.delete([]);
    });

    test("objects know when they were put", async () => {
      const before = Date.now();
      await store.put("a", Buffer.from("x"));
      for await (const { modifiedAt } of store.list("")) {
        expect(modifiedAt).toBeGreaterThan(before - 2_000);
        expect(modifiedAt).toBeLessThan(Date.now() + 2_000);
      }
    });

    test.each([
      "",
      "/",
      "/a",
      "a/",
      "a//b",
      ".",
      "..",
      "../a",
      "a/..",
      "a/../b",
      "a/./b",
      "a\\b",
      "a\0",
      "é",
      "a\n",
    ])("key %j is refused by every operation", async (key) => {
      const refused = { code: "TRB-STORE-FAILED" };
      await expect(store.get(key)).rejects.toMatchObject(refused);
      await expect(store.getRange(key, 0, 1)).rejects.toMatchObject(refused);
      await expect(store.put(key, Buffer.from("x"))).rejects.toMatchObject(refused);
      await expect(store.putIfAbsent(key, Buffer.from("x"))).rejects.toMatchObject(refused);
      await expect(store.withLocal([key], async () => undefined)).rejects.toMatchObject(refused);
      await expect(store.delete([key])).rejects.toMatchObject(refused);
      await expect(store.confirm([key])).rejects.toMatchObject(refused);
      const localPath = join(store.staging, "file");
      await writeFile(localPath, "x");
      await expect(store.adopt([{ localPath, key }])).rejects.toMatchObject(refused);
    });

    test("a prefix does not lead out of the store", async () => {
      for (const prefix of ["../", "/", "a/../", "../x", "a/../../", "./"]) {
        await expect(keys(prefix)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
      }
    });
  });
}
