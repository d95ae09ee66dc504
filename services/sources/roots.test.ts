import {
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  unlinkSync,
} from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { readAll, writeFile } from "../../test/support/sources.js";
import { loadConfig } from "../base/config.js";
import { S3Connection } from "../storage/s3-connection.js";
import { lend } from "./inspect.js";
import { LocalRoot } from "./local-root.js";
import { listSource } from "./manifest.js";
import { S3Root } from "./s3-root.js";
import { Scratch } from "./scratch.js";
import { parseSource } from "./source-path.js";
import { Sources } from "./sources.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "roots-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));
const at = (...names: string[]) => join(folder, ...names);

describe("the name of a source", () => {
  const urls = new Map([
    ["exports", "/data/exports"],
    ["deep", "/data/exports/deep"],
    ["bucket", "s3://acme/out"],
  ]);

  it.each([
    ["exports", { root: "exports", path: "" }],
    ["exports/", { root: "exports", path: "" }],
    ["exports/a/b=1 2/c.csv", { root: "exports", path: "a/b=1 2/c.csv" }],
    ["exports/a/", { root: "exports", path: "a" }],
    ["bucket/x%20y", { root: "bucket", path: "x%20y" }],
    ["s3://acme/out", { root: "bucket", path: "" }],
    ["s3://acme/out/x/y", { root: "bucket", path: "x/y" }],
    ["file:///data/exports/a%20b", { root: "exports", path: "a b" }],
    ["file:///data/exports/deep/x", { root: "deep", path: "x" }],
  ])("%s is read", (text, place) => {
    expect(parseSource(text, urls)).toEqual(place);
  });

  it.each([
    ["", "ROOT"],
    ["other/x", "ROOT"],
    ["/data/exports/x", "ROOT"],
    ["../exports", "ROOT"],
    ["s3://acme/outer/x", "ROOT"],
    ["s3://other/out/x", "ROOT"],
    ["file:///etc/passwd", "ROOT"],
    ["file://host/data/exports/x", "ROOT"],
    ["http://acme/out/x", "ROOT"],
    ["__proto__/x", "ROOT"],
    ["exports/..", "PATH"],
    ["exports/../x", "PATH"],
    ["exports/a/../../x", "PATH"],
    ["exports/./x", "PATH"],
    ["exports//x", "PATH"],
    ["exports//", "PATH"],
    ["exports/a\\..\\x", "PATH"],
    ["exports/a\0b", "PATH"],
    ["exports/a\nb", "PATH"],
    ["exports/%2e%2e/x", "PATH"],
    ["exports/%252e%252e/x", "PATH"],
    ["exports/a%2fb", "PATH"],
    ["exports/%5c", "PATH"],
    ["exports/x%00", "PATH"],
    ["exports/．．/x", "PATH"],
    ["exports/‥/x", "PATH"],
    ["exports/a／b", "PATH"],
    ["exports/\ud800", "PATH"],
    ["exports/\ufffd", "PATH"],
    ["file:///data/exports/%2e%2e/x", "PATH"],
    ["file:///data/exports/%", "PATH"],
    ["s3://acme/out/../x", "PATH"],
    [`exports/${"x".repeat(3000)}`, "PATH"],
  ])("%j is refused, and nothing is told of where roots lie", (text, code) => {
    const caught = (() => {
      try {
        return parseSource(text, urls);
      } catch (error) {
        return error as Error;
      }
    })();
    expect(caught).toMatchObject({ code: `TRB-SOURCE-${code}` });
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
    expect((caught as Error).message).not.toMatch(/\/data|acme|[\u0000-\u001f]/);
  });
});

describe("a folder", () => {
  const root = () => new LocalRoot("exports", at("exports"), at("data"));

  it("is listed by the bytes of names, without writers' own notes", async () => {
    const names = ["b.csv", "a/z.csv", "a.csv", "ü.csv", "\u{1F600}.csv", "\uFB01.csv", "_day=1/x.csv"];
    for (const name of [...names, "_SUCCESS", ".b.csv.crc", "_temporary/x.csv"])
      writeFile(at("exports", name), "x");
    const listed = (await root().list("")).map(({ path }) => path);
    expect(listed).toEqual([...names].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))));
    expect(await root().list("a")).toMatchObject([{ path: "a/z.csv", bytes: 1 }]);
    expect(await root().list("a/z.csv")).toMatchObject([{ path: "a/z.csv", bytes: 1 }]);
    expect(await root().list("none")).toEqual([]);
    expect(await root().list("a.csv/none")).toEqual([]);
    expect(await root().holds("a")).toBe(true);
    expect(await root().holds("none")).toBe(false);
  });

  it("with a link in it, or on the way to it, is refused", async () => {
    writeFile(at("secret", "x.csv"), "x");
    writeFile(at("exports", "a", "x.csv"), "x");
    symlinkSync(at("secret"), at("exports", "a", "link"));
    symlinkSync("x.csv", at("exports", "a", "file.csv"));
    for (const path of ["", "a", "a/link", "a/link/x.csv", "a/file.csv"]) {
      const listing = root().list(path);
      await expect(listing).rejects.toMatchObject({ code: "TRB-SOURCE-LINK" });
      await expect(listing).rejects.toThrow(/^exports\/a\/(link|file\.csv): it is a link$/);
    }
  });

  it("with what is no file in it is refused", async () => {
    writeFile(at("exports", "x.csv"), "x");
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(at("exports", "socket"), resolve));
    try {
      await expect(root().list("")).rejects.toThrow("exports/socket: it is neither a file nor a folder");
    } finally {
      await new Promise((resolve) => server.close(resolve));
    }
  });

  it("may itself be reached by a link, which the operator has named", async () => {
    writeFile(at("real", "x.csv"), "x");
    symlinkSync(at("real"), at("exports"));
    expect(await root().list("")).toMatchObject([{ path: "x.csv" }]);
  });

  it("of the lake's is refused, from inside and from around it", async () => {
    writeFile(at("exports", "fine", "x.csv"), "x");
    writeFile(at("exports", "data", "lake", "x.parquet"), "x");
    const around = new LocalRoot("exports", at("exports"), at("exports", "data"));
    for (const path of ["", "data", "data/lake", "data/lake/x.parquet"]) {
      await expect(around.list(path)).rejects.toMatchObject({ code: "TRB-SOURCE-LAKE" });
    }
    expect(await around.list("fine")).toHaveLength(1);
    // Named by a link, it is the same place.
    symlinkSync(at("exports", "data"), at("alias"));
    const inside = new LocalRoot("alias", at("alias", "lake"), at("exports", "data"));
    await expect(inside.list("")).rejects.toMatchObject({ code: "TRB-SOURCE-LAKE" });
  });

  it("lends files as they were listed", async () => {
    writeFile(at("exports", "x.csv"), "abc");
    const [file] = await root().list("x.csv");
    expect(await root().withLocal([file!], ([path]) => readFile(path!, "utf8"))).toBe("abc");
    const changing = root().withLocal([file!], async () => writeFile(at("exports", "x.csv"), "abd"));
    await expect(changing).rejects.toMatchObject({ code: "TRB-SOURCE-CHANGED" });
    await expect(root().withLocal([file!], async () => "")).rejects.toThrow("exports/x.csv: it has changed");
    unlinkSync(at("exports", "x.csv"));
    await expect(root().withLocal([file!], async () => "")).rejects.toThrow("exports/x.csv: it is gone");
    // Another file of the same contents is another file.
    writeFile(at("exports", "y.csv"), "abc");
    linkSync(at("exports", "y.csv"), at("exports", "x.csv"));
    await expect(root().withLocal([file!], async () => "")).rejects.toThrow("exports/x.csv: it has changed");
  });
});

/** A bucket behind the SDK's client. */
class FakeBucket {
  readonly objects = new Map<string, { readonly bytes: Buffer; readonly etag: string }>();
  readonly asked: string[] = [];
  page = 2;

  put(key: string, text: string, etag = `"${text.length}-${text}"`): void {
    this.objects.set(key, { bytes: Buffer.from(text), etag });
  }

  send(command: {
    readonly constructor: { readonly name: string };
    readonly input: Record<string, unknown>;
  }): unknown {
    const { input } = command;
    this.asked.push(`${command.constructor.name} ${String(input.Prefix ?? input.Key)}`);
    if (command.constructor.name === "ListObjectsV2Command") {
      const keys = [...this.objects.keys()].filter((key) => key.startsWith(String(input.Prefix))).sort();
      const from = Number(input.ContinuationToken ?? 0);
      const end = from + Math.min(this.page, Number(input.MaxKeys));
      return {
        Contents: keys.slice(from, end).map((Key) => {
          const { bytes, etag } = this.objects.get(Key)!;
          return { Key, Size: bytes.length, ETag: etag };
        }),
        IsTruncated: end < keys.length,
        NextContinuationToken: String(end),
      };
    }
    const found = this.objects.get(String(input.Key));
    if (found === undefined) throw failure("NoSuchKey", 404);
    if (input.IfMatch !== found.etag) throw failure("PreconditionFailed", 412);
    return { Body: Readable.from([found.bytes]), ContentLength: found.bytes.length, ETag: found.etag };
  }
}

const failure = (name: string, httpStatusCode: number) =>
  Object.assign(new Error(name), { name, $metadata: { httpStatusCode } });

describe("a bucket", () => {
  let bucket: FakeBucket;
  const open = async (prefix = "out", lake?: { bucket: string; prefix: string }, scratchBytes = 100) => {
    bucket = new FakeBucket();
    const s3 = new S3Connection({
      bucket: "acme",
      prefix,
      forcePathStyle: true,
      region: "x",
      timeoutMs: 1000,
    });
    Object.assign(s3.client, {
      send: async (command: Parameters<FakeBucket["send"]>[0]) => bucket.send(command),
    });
    return new S3Root("exports", s3, await Scratch.open(at("scratch"), scratchBytes), lake);
  };

  it("is listed page by page, below a prefix and not beside it", async () => {
    const root = await open();
    for (const key of [
      "out/a/1.csv",
      "out/a/2.csv",
      "out/a/3.csv",
      "out/a/",
      "out/a/_SUCCESS",
      "out/ab/4.csv",
      "outer/5.csv",
    ]) {
      bucket.put(key, "x");
    }
    expect((await root.list("a")).map(({ path }) => path)).toEqual(["a/1.csv", "a/2.csv", "a/3.csv"]);
    expect((await root.list("")).map(({ path }) => path)).toEqual([
      "a/1.csv",
      "a/2.csv",
      "a/3.csv",
      "ab/4.csv",
    ]);
    expect((await root.list("a/2.csv")).map(({ path }) => path)).toEqual(["a/2.csv"]);
    expect(await root.list("a/2")).toEqual([]);
    expect(await root.holds("a")).toBe(true);
    expect(await root.holds("a/2")).toBe(false);
  });

  it("lends copies of what was listed, and leaves none behind", async () => {
    const root = await open();
    bucket.put("out/x.csv", "abc");
    bucket.put("out/y.csv", "defg");
    const files = await root.list("");
    const texts = await root.withLocal(files, (paths) =>
      Promise.all(paths.map((path) => readFile(path, "utf8"))),
    );
    expect(texts).toEqual(["abc", "defg"]);
    expect(readdirSync(at("scratch"))).toEqual([]);
    bucket.put("out/x.csv", "abd");
    await expect(root.withLocal(files, async () => "")).rejects.toThrow("exports/x.csv: it has changed");
    bucket.objects.delete("out/x.csv");
    await expect(root.withLocal(files, async () => "")).rejects.toThrow("exports/x.csv: it is gone");
    expect(readdirSync(at("scratch"))).toEqual([]);
  });

  it("waits for room on the disk, and refuses what never finds it", async () => {
    const root = await open("out", undefined, 10);
    bucket.put("out/a.csv", "1234567");
    bucket.put("out/b.csv", "1234567");
    bucket.put("out/c.csv", "12345678901");
    const [a, b, c] = await root.list("");
    const events: string[] = [];
    let free = () => {};
    const first = root.withLocal([a!], () => new Promise<void>((resolve) => (free = resolve)));
    const second = root.withLocal([b!], async () => void events.push("second"));
    await new Promise((resolve) => setTimeout(resolve, 50));
    events.push("freed");
    free();
    await Promise.all([first, second]);
    expect(events).toEqual(["freed", "second"]);
    await expect(root.withLocal([c!], async () => "")).rejects.toMatchObject({ code: "TRB-SOURCE-SCRATCH" });
  });

  it("is read, and a Delta table below a source is not taken for files", async () => {
    const root = await open("out", undefined, 1000);
    bucket.put("out/a/1.ndjson", '{"a":1}\n{\n');
    bucket.put("out/b/t/_delta_log/00000000000000000000.json", "{}");
    bucket.put("out/b/t/1.parquet", "x");
    const place = { root, path: "a" };
    const readLog = () => Promise.reject(new Error("there is no log"));
    const manifest = await listSource(place, {}, readLog);
    expect(manifest).toMatchObject({ source: "exports/a", format: "ndjson", bytes: 10 });
    const limits = { maxRecordBytes: 1000 };
    const read = await lend(place, manifest, 0, limits, undefined, (unit) => {
      expect(unit).toMatchObject({ shown: "exports/a/1.ndjson", identity: undefined });
      return readAll(unit);
    });
    expect(read).toMatchObject({ rows: [[0, '{"a":1}']], rejects: [{ row: 1, code: "TRB-ROW-JSON" }] });
    await expect(listSource({ root, path: "b" }, {}, readLog)).rejects.toThrow(
      "exports/b/t: it is a Delta table",
    );
  });

  it.each([
    ["", "lake", ""],
    ["lake", "", "lake"],
    ["lake", "lake", ""],
    ["lake/raw", "lake", ""],
    ["out", "out/lake", ""],
    ["out", "out/lake", "lake/raw"],
  ])(
    "that is the lake's is refused: a root at '%s', the lake at '%s', the source '%s'",
    async (prefix, lake, path) => {
      const root = await open(prefix, { bucket: "acme", prefix: lake });
      await expect(root.list(path)).rejects.toMatchObject({ code: "TRB-SOURCE-LAKE" });
      await expect(root.holds(path)).rejects.toMatchObject({ code: "TRB-SOURCE-LAKE" });
      expect(bucket.asked).toEqual([]);
    },
  );

  it("beside the lake's place is not the lake's", async () => {
    const root = await open("out", { bucket: "acme", prefix: "out/lake" });
    bucket.put("out/lakes/x.csv", "x");
    expect(await root.list("lakes")).toHaveLength(1);
  });

  it("that cannot be reached says so, and names the source", async () => {
    const root = await open();
    bucket.send = () => {
      throw failure("AccessDenied", 403);
    };
    await expect(root.list("a")).rejects.toMatchObject({ code: "TRB-SOURCE-UNREADABLE" });
    await expect(root.list("a")).rejects.toThrow("exports: list: AccessDenied");
  });
});

describe("bulk.sources", () => {
  it("names folders and buckets; a variable does, too", async () => {
    mkdirSync(at("exports"));
    const env = { TRIBUTARY_BULK__SOURCES__BUCKET: "s3://acme/out", TRIBUTARY_DATA: at("data") };
    const sources = {
      folder: at("exports"),
      far: { url: "s3://acme", region: "eu-1", forcePathStyle: "true" },
    };
    const config = loadConfig({ bulk: { sources } }, { env });
    const opened = await Sources.open(config, at("scratch"));
    expect(opened.at("folder/x")).toMatchObject({ root: { name: "folder", inPlace: true }, path: "x" });
    expect(opened.at("far/x")).toMatchObject({ root: { name: "far", inPlace: false }, path: "x" });
    expect(opened.at("s3://acme/out/x")).toMatchObject({ root: { name: "bucket" }, path: "x" });
    expect(() => opened.at("none/x")).toThrow("source: expected <root>/<path>");
    opened.close();
  });

  it("that are folders alone need no local disk", async () => {
    const config = loadConfig({ bulk: { sources: { folder: at("exports") } } }, { env: {} });
    (await Sources.open(config, at("scratch"))).close();
    expect(existsSync(at("scratch"))).toBe(false);
  });

  it.each([
    "exports",
    "./exports",
    "/a/../b",
    "s3://",
    "s3://acme/../x",
    "s3://acme/x/",
    "http://acme",
    "s3://acme//x",
  ])("%s is refused", (url) => {
    expect(() => loadConfig({ bulk: { sources: { x: url } } }, { env: {} })).toThrow(
      /^bulk\.sources\.x\.url: expected/,
    );
  });

  it("must have names that paths begin with", () => {
    expect(() => loadConfig({ bulk: { sources: { "a/b": "/x" } } }, { env: {} })).toThrow(/^bulk\.sources/);
  });
});
