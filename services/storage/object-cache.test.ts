import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { TributaryError } from "../base/errors.js";
import { type CacheOptions, cachesIn, type Fetch, ObjectCache } from "./object-cache.js";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "tributary-cache-"));
});
afterEach(() => rm(folder, { recursive: true }));

const KB = 1024;
const open = (options: Partial<CacheOptions> = {}) =>
  ObjectCache.open({ folder, user: "a", bytes: 10 * KB, place: "bucket", roomMs: 100, ...options });

/** A store of objects of 1 KB each (or what their key says), which counts what is fetched. */
class Origin {
  readonly fetched: string[] = [];
  readonly missing = new Set<string>();
  /** Awaited before a body is written. */
  gate: Promise<void> = Promise.resolve();
  fails: ((path: string) => Promise<void>) | undefined;

  readonly fetch: Fetch = async (key, path, room) => {
    this.fetched.push(key);
    if (this.missing.has(key)) return false;
    const [, kilobytes = "1"] = /-(\d+)k$/.exec(key) ?? [];
    const bytes = Number(kilobytes) * KB;
    await room(bytes);
    await this.gate;
    await this.fails?.(path);
    await writeFile(path, key.padEnd(bytes));
    return true;
  };
}

const textOf = async (path: string) => (await readFile(path, "utf8")).trimEnd();
const read = (cache: ObjectCache, origin: Origin, ...keys: string[]) =>
  cache.withLocal(keys, origin.fetch, (paths) => Promise.all(paths.map(textOf)));

describe("copies", () => {
  test("are fetched once, lent read-only, and are each their own key's", async () => {
    const cache = await open();
    const origin = new Origin();
    const keys = ["t=acme/f", "t=acme%2Ff", "t=acme/F", "../t=acme/f", "t=globex/f"];
    for (const _ of [1, 2]) expect(await read(cache, origin, ...keys)).toEqual(keys);
    expect([...origin.fetched].sort()).toEqual([...keys].sort());
    await cache.withLocal(keys, origin.fetch, async (paths) => {
      expect(new Set(paths).size).toBe(keys.length);
      for (const path of paths) {
        expect((await stat(path)).mode & 0o222).toBe(0);
        expect(path.startsWith(folder)).toBe(true);
        expect(path).not.toMatch(/acme|globex/);
      }
    });
  });

  test("of another store are not this one's", async () => {
    const origin = new Origin();
    expect(await read(await open(), origin, "k")).toEqual(["k"]);
    expect(await read(await open({ place: "other" }), origin, "k")).toEqual(["k"]);
    expect(origin.fetched).toEqual(["k", "k"]);
  });

  test("that many want at once are fetched once; a failure is everybody's, and tried again by the next", async () => {
    const cache = await open();
    const origin = new Origin();
    let go: () => void = () => undefined;
    origin.gate = new Promise((resolve) => {
      go = resolve;
    });
    const many = Array.from({ length: 20 }, () => read(cache, origin, "k"));
    setTimeout(go, 20);
    expect(await Promise.all(many)).toEqual(Array.from({ length: 20 }, () => ["k"]));
    expect(origin.fetched).toEqual(["k"]);
    origin.fails = () => Promise.reject(new TributaryError("TRB-STORE-FAILED", "down"));
    const outcomes = await Promise.allSettled([read(cache, origin, "l"), read(cache, origin, "l")]);
    expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    origin.fails = undefined;
    expect(await read(cache, origin, "l")).toEqual(["l"]);
    expect(cache.bytes).toBe(2 * KB);
  });

  test("of what is not there are no files, and are looked for again", async () => {
    const cache = await open();
    const origin = new Origin();
    origin.missing.add("k");
    expect(await cache.withLocal(["k"], origin.fetch, async ([path]) => existsSync(path!))).toBe(false);
    origin.missing.clear();
    expect(await read(cache, origin, "k")).toEqual(["k"]);
    expect(cache.bytes).toBe(KB);
  });

  test("that somebody has removed or cut are fetched again", async () => {
    const cache = await open();
    const origin = new Origin();
    const [path] = await cache.withLocal(["k"], origin.fetch, async (paths) => paths);
    await rm(path!);
    expect(await read(cache, origin, "k")).toEqual(["k"]);
    await rm(path!);
    await writeFile(path!, "k");
    expect(await read(cache, origin, "k")).toEqual(["k"]);
    expect((await stat(path!)).size).toBe(KB);
    expect(origin.fetched).toHaveLength(3);
    expect(cache.bytes).toBe(KB);
  });

  test("of deleted objects are dropped, those on loan when they are given back", async () => {
    const cache = await open();
    const origin = new Origin();
    await read(cache, origin, "k");
    cache.drop(["k", "unknown"]);
    expect(cache.bytes).toBe(0);
    await cache.withLocal(["k"], origin.fetch, async ([path]) => {
      cache.drop(["k"]);
      expect(await textOf(path!)).toBe("k");
    });
    expect(cache.bytes).toBe(0);
    await read(cache, origin, "k");
    expect(origin.fetched).toHaveLength(3);
  });

  test("are fresh where that is asked for, and then nobody else's", async () => {
    const cache = await open();
    const origin = new Origin();
    await read(cache, origin, "k");
    const path = await cache.withFresh(["k"], origin.fetch, async ([fresh]) => {
      expect(await textOf(fresh!)).toBe("k");
      expect(cache.bytes).toBe(2 * KB);
      return fresh!;
    });
    expect(origin.fetched).toHaveLength(2);
    expect(existsSync(path)).toBe(false);
    expect(cache.bytes).toBe(KB);
  });
});

describe("room", () => {
  test("the least recently used go first, and what is held is bounded", async () => {
    const cache = await open();
    const origin = new Origin();
    for (let i = 0; i < 10; i++) await read(cache, origin, `k${i}`);
    await read(cache, origin, "k0");
    await read(cache, origin, "k10", "k11");
    expect(cache.bytes).toBe(10 * KB);
    origin.fetched.length = 0;
    await read(cache, origin, "k0", "k3", "k11");
    expect(origin.fetched).toEqual([]);
    await read(cache, origin, "k1");
    expect(origin.fetched).toEqual(["k1"]);
    const files = await readdir(join(cachesIn(folder), "a"));
    expect(files).toHaveLength(10);
  });

  test("what is lent stays, however much comes after it", async () => {
    const cache = await open();
    const origin = new Origin();
    await cache.withLocal(["a-4k", "b-4k"], origin.fetch, async (paths) => {
      for (let i = 0; i < 20; i++) await read(cache, origin, `k${i}`);
      expect(await Promise.all(paths.map(textOf))).toEqual(["a-4k", "b-4k"]);
      expect(cache.bytes).toBeLessThanOrEqual(10 * KB);
    });
    expect(origin.fetched.filter((key) => key.endsWith("4k"))).toHaveLength(2);
  });

  test("a loan that waits gets its room when another ends; one that waits too long is told, and may come again", async () => {
    const cache = await open({ roomMs: 2_000 });
    const origin = new Origin();
    let end: () => void = () => undefined;
    const first = cache.withLocal(
      ["a-8k"],
      origin.fetch,
      () =>
        new Promise<void>((resolve) => {
          end = resolve;
        }),
    );
    const second = read(cache, origin, "b-8k");
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(origin.fetched.toSorted()).toEqual(["a-8k", "b-8k"]);
    end();
    await first;
    expect(await second).toEqual(["b-8k"]);

    const hasty = await open({ user: "b", roomMs: 20 });
    await hasty.withLocal(["a-8k"], origin.fetch, async () => {
      await expect(read(hasty, origin, "c-8k")).rejects.toMatchObject({
        code: "TRB-STORE-FAILED",
        retryable: true,
      });
    });
    expect(await read(hasty, origin, "c-8k")).toEqual(["c-8k"]);
  });

  test("files that cannot all be there at once are refused at once, and name the setting", async () => {
    const cache = await open({ roomMs: 60_000 });
    const origin = new Origin();
    const small = {
      code: "TRB-STORE-CACHE-SMALL",
      message: expect.stringContaining("storage.s3.cacheBytes"),
    };
    await expect(read(cache, origin, "a-11k")).rejects.toMatchObject(small);
    await expect(read(cache, origin, "a-4k", "b-4k", "c-4k")).rejects.toMatchObject(small);
    await expect(cache.withFresh(["a-11k"], origin.fetch, async () => 0)).rejects.toMatchObject(small);
    expect(await read(cache, origin, "d-10k")).toEqual(["d-10k"]);
  });

  test("a file that was just put is kept when there is room, and gone from where it was either way", async () => {
    const cache = await open();
    const origin = new Origin();
    for (const [key, bytes] of [
      ["small", KB],
      ["large", 11 * KB],
    ] as const) {
      const file = join(folder, key);
      await writeFile(file, key.padEnd(bytes));
      await cache.adopt(key, file);
      expect(existsSync(file)).toBe(false);
    }
    expect(await read(cache, origin, "small")).toEqual(["small"]);
    expect(origin.fetched).toEqual([]);
    expect(cache.bytes).toBe(KB);
  });
});

describe("faults", () => {
  test("a disk that is full: what need not be here goes, and the file has a second try", async () => {
    const cache = await open();
    const origin = new Origin();
    for (let i = 0; i < 5; i++) await read(cache, origin, `k${i}`);
    let tries = 0;
    origin.fails = async (path) => {
      await writeFile(path, "half");
      if (tries++ === 0) throw Object.assign(new Error("full"), { code: "ENOSPC" });
      expect(cache.bytes).toBe(KB);
    };
    expect(await read(cache, origin, "k")).toEqual(["k"]);
    origin.fails = () => {
      const cause = Object.assign(new Error("full"), { code: "ENOSPC" });
      return Promise.reject(new TributaryError("TRB-STORE-FAILED", "get: ENOSPC", { cause }));
    };
    await expect(read(cache, origin, "l")).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    expect(cache.bytes).toBe(0);
    const left = await readdir(join(cachesIn(folder), "a"));
    expect(left).toEqual([]);
  });

  test("what a killed process left: whole files are used again, halves are removed", async () => {
    const origin = new Origin();
    await read(await open(), origin, "k", "l");
    const own = join(cachesIn(folder), "a");
    await writeFile(join(own, "0f8fad5b.tmp"), "half");
    const again = await open();
    expect(again.bytes).toBe(2 * KB);
    expect(await read(again, origin, "k", "l")).toEqual(["k", "l"]);
    expect([...origin.fetched].sort()).toEqual(["k", "l"]);
    expect(await readdir(own)).toHaveLength(2);
    const smaller = await open({ bytes: KB });
    expect(smaller.bytes).toBe(KB);
    expect(await readdir(own)).toHaveLength(1);
  });

  test("what was there before the machine started is not trusted", async () => {
    const before = join(folder, "another-boot", "a");
    await mkdir(before, { recursive: true });
    await writeFile(join(before, "f".repeat(64)), "cut by the power loss");
    await open();
    expect(existsSync(join(folder, "another-boot"))).toBe(false);
  });

  test("another process's copy is shared, and stays when that one lets go of it", async () => {
    const origin = new Origin();
    const [ingest, query] = [await open({ user: "ingest" }), await open({ user: "query" })];
    await read(ingest, origin, "k");
    await query.withLocal(["k"], origin.fetch, async ([path]) => {
      ingest.drop(["k"]);
      expect(await textOf(path!)).toBe("k");
    });
    expect(origin.fetched).toEqual(["k"]);
    expect([ingest.bytes, query.bytes]).toEqual([0, KB]);
  });
});
