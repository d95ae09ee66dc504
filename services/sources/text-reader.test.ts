import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { PACKED, rawZstd, readAll, unitOf, writeFile } from "../../test/support/sources.js";
import { Duck } from "../base/duckdb.js";
import { CSV_DEFAULTS } from "./formats.js";
import { HeldFile } from "./held-file.js";
import type { Mark } from "./splitter.js";

const folder = mkdtempSync(join(tmpdir(), "sources-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);
/** Comparing thousands of rows one by one takes longer than reading them. */
const digest = (rows: readonly unknown[]) => createHash("sha256").update(JSON.stringify(rows)).digest("hex");
const packings = Object.keys(PACKED) as (keyof typeof PACKED)[];
const pack = (name: keyof typeof PACKED, text: string | Buffer) => PACKED[name](Buffer.from(text));

const framed = (events: readonly Buffer[]): Buffer =>
  Buffer.concat(
    events.flatMap((event) => {
      const length: number[] = [];
      let left = event.length;
      for (; left > 0x7f; left = Math.floor(left / 128)) length.push((left & 0x7f) | 0x80);
      return [Buffer.from([...length, left]), event];
    }),
  );

describe.each(packings)("lines of JSON, packed as '%s'", (ext) => {
  const read = async (name: string, text: string | Buffer, more = {}) => {
    const path = at(`${name}.ndjson${ext}`);
    writeFile(path, pack(ext, text));
    return readAll(await unitOf(path, more));
  };

  it("are rows, but for those that are no objects", async () => {
    const text = '\uFEFF{"a":1}\r\n\n{"a":\n[1]\n"x"\n{"a":"ü"}\n \t{"a":3}';
    const { rows, rejects, columns } = await read("lines", text);
    expect(columns).toEqual(["record"]);
    expect(rows).toEqual([
      [0, '{"a":1}'],
      [4, '{"a":"ü"}'],
      [5, ' \t{"a":3}'],
    ]);
    expect(
      rejects.map(({ row, offset, code, bytes }) => [row, offset, code, Buffer.from(bytes).toString()]),
    ).toEqual([
      [1, 13, "TRB-ROW-JSON", '{"a":'],
      [2, 19, "TRB-ROW-JSON", "[1]"],
      [3, 23, "TRB-ROW-JSON", '"x"'],
    ]);
  });

  it("that are too long, or no UTF-8, are rejected, and those around them stay", async () => {
    const long = `{"a":"${"x".repeat(3_000_000)}"}`;
    const text = Buffer.concat([
      Buffer.from(`{"a":1}\n${long}\n{"a":2}\n`),
      Buffer.from([0x7b, 0xff, 0x7d, 0x0a]),
      Buffer.from(`{"a":3}\n${long}`),
    ]);
    const { rows, rejects } = await read("long", text);
    expect(rows.map(([row]) => row)).toEqual([0, 2, 4]);
    expect(rejects.map(({ row, offset, code, bytes }) => [row, offset, code, bytes.length])).toEqual([
      [1, 8, "TRB-ROW-LENGTH", 64 * 1024],
      [3, 8 + long.length + 1 + 8, "TRB-ROW-UTF8", 3],
      [5, 8 + long.length + 1 + 8 + 4 + 8, "TRB-ROW-LENGTH", 64 * 1024],
    ]);
    expect(Buffer.from(rejects[0]!.bytes).toString()).toBe(long.slice(0, 64 * 1024));
  });

  it("or none for megabytes, come in batches, so that whoever reads is asked whether it goes on", async () => {
    const [nothing, endless] = ["\n".repeat(3_000_000), "x".repeat(3_000_000)];
    const text = `{"a":1}\n${nothing}{"a":2}\n${endless}\n{"a":3}\n`;
    const whole = await read("nothing", text, { batchBytes: 300_000 });
    expect(whole.rows.map(([row]) => row)).toEqual([0, 1, 3]);
    expect(whole.rejects.map(({ row, code }) => [row, code])).toEqual([[2, "TRB-ROW-LENGTH"]]);
    expect(whole.bytes).toBe(Buffer.byteLength(text));
    // Pieces are of a megabyte at most.
    expect(whole.marks.length).toBeGreaterThan(5);
    for (const mark of whole.marks) {
      const rest = await readAll(await unitOf(at(`nothing.ndjson${ext}`), { batchBytes: 300_000 }), mark);
      expect(rest.rows.map(([row]) => row)).toEqual([0, 1, 3].filter((row) => row >= mark.row));
      expect(rest.rejects.length).toBe(mark.row <= 2 ? 1 : 0);
      expect(rest.marks.every(({ row }) => row >= mark.row)).toBe(true);
    }
  });

  it("tell what is left of their file, so that nobody makes a chunk of little", async () => {
    const lines = Array.from({ length: 120_000 }, () => `{"a":"${randomBytes(30).toString("hex")}"}\n`);
    const { left, bytes } = await read("left", lines.join(""), { batchBytes: 4_000_000 });
    expect(left.length).toBeGreaterThan(4);
    expect(left.at(-1)).toBe(0);
    // Of a packed file it is a guess.
    const halfway = left[Math.floor(left.length / 2) - 1]!;
    expect(halfway).toBeGreaterThan(bytes / 4);
    expect(halfway).toBeLessThan((bytes * 3) / 4);
  });

  it("are read on from wherever a batch has ended", async () => {
    const lines = Array.from({ length: 12_000 }, (_, i) =>
      i % 7 === 3 ? "{" : `{"id":${i},"text":"${"y".repeat(i % 90)}"}`,
    );
    const whole = await read("marks", lines.join("\n"), { batchBytes: 100_000 });
    expect(whole.marks.length).toBeGreaterThan(1);
    expect(whole.rows.length + whole.rejects.length).toBe(lines.length);
    for (const mark of whole.marks.slice(0, 2)) {
      const rest = await readAll(await unitOf(at(`marks.ndjson${ext}`), { batchBytes: 500_000 }), mark);
      expect(digest(rest.rows)).toBe(digest(whole.rows.filter(([row]) => Number(row) >= mark.row)));
      expect(digest(rest.rejects)).toBe(digest(whole.rejects.filter(({ row }) => row >= mark.row)));
    }
  });
});

describe("snapshots of Debezium", () => {
  it("are the rows that were read, with or without a schema around them", async () => {
    const path = at("snapshot.ndjson");
    const after = '{"id":7,"big":123456789012345678901234567890}';
    writeFile(
      path,
      [
        `{"op":"r","after":${after},"source":{"lsn":5},"ts_ms":17}`,
        `{"schema":{"type":"struct"},"payload":{"op":"r","after":${after},"source":{"lsn":6}}}`,
        `{"op":"u","after":${after}}`,
        '{"op":"r","after":null}',
        "null",
        '{"op":"r"',
      ].join("\n"),
    );
    const { rows, rejects, columns } = await readAll(await unitOf(path, { format: "debezium" }));
    expect(columns).toEqual(["record", "source", "ts_ms"]);
    expect(rows).toEqual([
      [0, after, '{"lsn":5}', 17n],
      [1, after, '{"lsn":6}', null],
    ]);
    expect(rejects.map(({ row, code }) => [row, code])).toEqual([
      [2, "TRB-ROW-SNAPSHOT"],
      [3, "TRB-ROW-SNAPSHOT"],
      [4, "TRB-ROW-JSON"],
      [5, "TRB-ROW-JSON"],
    ]);
  });
});

describe.each(packings)("CSV, packed as '%s'", (ext) => {
  const read = async (name: string, text: string, more = {}) => {
    const path = at(`${name}.csv${ext}`);
    writeFile(path, pack(ext, text));
    return readAll(await unitOf(path, more));
  };

  it("has quoted line breaks, doubled quotes, NULL and empty texts", async () => {
    const text = '\uFEFFid,"the ""text"""\r\n1,"a\r\nb, ""c"""\r\n2,\n3,""\n\n"4",plain\n';
    const { rows, rejects, columns } = await read("quoted", text);
    expect(columns).toEqual(["id", 'the "text"']);
    expect(rows).toEqual([
      [0, "1", 'a\r\nb, "c"'],
      [1, "2", null],
      [2, "3", ""],
      [3, "4", "plain"],
    ]);
    expect(rejects).toEqual([]);
  });

  it("rejects records of other widths, and quotes that do not fit", async () => {
    const bad = ["1", "1,2,3", '"a"b,2', 'a"b,2', `${"x".repeat(2_000_000)},2`];
    const text = `a,b\n${bad.map((line) => `${line}\nok,"fi\nne"\n`).join("")}last,"open\n`;
    const { rows, rejects } = await read("bad", text);
    expect(rows).toEqual([1, 3, 5, 7, 9].map((row) => [row, "ok", "fi\nne"]));
    expect(rejects.map(({ row, code }) => [row, code])).toEqual([
      [0, "TRB-ROW-COLUMNS"],
      [2, "TRB-ROW-COLUMNS"],
      [4, "TRB-ROW-QUOTE"],
      [6, "TRB-ROW-QUOTE"],
      [8, "TRB-ROW-LENGTH"],
      [10, "TRB-ROW-QUOTE"],
    ]);
    expect(Buffer.from(rejects[1]!.bytes).toString()).toBe("1,2,3");
  });

  it("is read on from wherever a batch has ended", async () => {
    const lines = Array.from({ length: 8_000 }, (_, i) =>
      i % 11 === 3 ? "x" : `${i},"a\n${"z".repeat(i % 70)}"`,
    );
    const whole = await read("marks", `id,text\n${lines.join("\n")}`, { batchBytes: 100_000 });
    expect(whole.rows.length + whole.rejects.length).toBe(lines.length);
    for (const mark of whole.marks.slice(0, 2)) {
      const rest = await readAll(await unitOf(at(`marks.csv${ext}`)), mark);
      expect(digest(rest.rows)).toBe(digest(whole.rows.filter(([row]) => Number(row) >= mark.row)));
    }
  });
});

describe("CSV", () => {
  it("takes another delimiter, names from outside, and another text for NULL", async () => {
    const path = at("tabs.csv");
    writeFile(path, "1\t\\N\n2\t\n");
    const csv = { delimiter: "\t", columns: ["id", "text"], nullText: "\\N" };
    const { rows } = await readAll(await unitOf(path, { csv }));
    expect(rows).toEqual([
      [0, "1", null],
      [1, "2", ""],
    ]);
  });

  it.each(["", '"', "\n", "ab", "ü"])("with the delimiter %j is refused", async (delimiter) => {
    const path = at("delimiter.csv");
    writeFile(path, "a\n1\n");
    const unit = await unitOf(path, { csv: { delimiter, nullText: "" } });
    await expect(readAll(unit)).rejects.toMatchObject({ code: "TRB-SOURCE-FORMAT" });
  });

  it.each([
    ["", "TRB-SOURCE-DAMAGED"],
    ["a,A\n1,2\n", "TRB-SOURCE-FORMAT"],
    ["a,\n1,2\n", "TRB-SOURCE-FORMAT"],
    ["tributary_ordinal\n1\n", "TRB-SOURCE-FORMAT"],
  ])("with the header of %j is refused", async (text, code) => {
    const path = at("header.csv");
    writeFile(path, text);
    await expect(readAll(await unitOf(path))).rejects.toMatchObject({ code });
  });

  it("of any values comes back as it was written, however it is cut into pieces and batches", async () => {
    const value = fc.oneof(fc.constant(null), fc.string(), fc.stringMatching(/^[",\n\r a]{0,8}$/));
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(value, value), { maxLength: 40 }),
        fc.integer({ min: 1, max: 500 }),
        async (rows, batchBytes) => {
          const cell = (text: string | null) => (text === null ? "" : `"${text.replaceAll('"', '""')}"`);
          const path = at("any.csv.zst");
          writeFile(
            path,
            rawZstd(Buffer.from(`a,b\n${rows.map((row) => `${row.map(cell).join(",")}\n`).join("")}`), 7),
          );
          const read = await readAll(await unitOf(path, { batchBytes }));
          expect(read.rejects).toEqual([]);
          expect(read.rows.map(([, ...values]) => values)).toEqual(rows.map(([a, b]) => [a, b]));
        },
      ),
      { numRuns: 15 },
    );
  });
});

describe.each(packings)("events, packed as '%s'", (ext) => {
  const path = at(`events.pb${ext}`);

  it("are what stands between their lengths; one that is too long is passed over", async () => {
    const events = [
      Buffer.from("one"),
      Buffer.alloc(0),
      randomBytes(300),
      randomBytes(2_500_000),
      Buffer.from("last"),
    ];
    writeFile(path, pack(ext, framed(events)));
    const { rows, rejects } = await readAll(await unitOf(path));
    const bytes = rows.map(([row, event]) => [row, Buffer.from((event as { bytes: Uint8Array }).bytes)]);
    expect(bytes).toEqual([0, 1, 2, 4].map((row) => [row, events[row]]));
    expect(rejects.map(({ row, code }) => [row, code])).toEqual([[3, "TRB-ROW-LENGTH"]]);
  });

  it.each([
    ["cut within an event", framed([Buffer.from("one"), Buffer.alloc(100)]).subarray(0, 50)],
    ["cut within a length", Buffer.concat([framed([Buffer.from("one")]), Buffer.from([0x80])])],
    [
      "cut within one that is too long",
      framed([Buffer.from("one"), Buffer.alloc(2_500_000)]).subarray(0, 2_000_000),
    ],
    ["without lengths", Buffer.alloc(100, 0xff)],
  ])("are damaged when they are %s", async (_, bytes) => {
    writeFile(path, pack(ext, bytes));
    await expect(readAll(await unitOf(path))).rejects.toMatchObject({ code: "TRB-SOURCE-DAMAGED" });
  });
});

describe("what is packed", () => {
  const text = Buffer.from(`${JSON.stringify({ text: randomBytes(200_000).toString("hex") })}\n`.repeat(5));

  it.each([
    ["gzip cut short", "x.ndjson.gz", gzipSync(text).subarray(0, 90_000)],
    ["gzip that is none", "x.ndjson.gz", text],
    [
      "gzip with damage inside",
      "x.ndjson.gz",
      Buffer.concat([gzipSync(text).subarray(0, 5000), randomBytes(5000)]),
    ],
    ["zstd cut short", "x.ndjson.zst", rawZstd(text).subarray(0, 350_000)],
    ["zstd that is none", "x.ndjson.zst", text],
    ["a zstd frame without its end", "x.ndjson.zst", rawZstd(text).subarray(0, 5)],
  ])("as %s is damaged", async (_, name, bytes) => {
    writeFile(at(name), bytes);
    await expect(readAll(await unitOf(at(name)))).rejects.toMatchObject({
      code: "TRB-SOURCE-DAMAGED",
      message: expect.not.stringContaining(folder) as unknown,
    });
  });

  it("by others, of several parts, is read whole", async () => {
    const duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
    try {
      const path = at("made.csv.zst");
      await duck.with((connection) =>
        connection.run(
          `COPY (SELECT range AS id, md5(range::VARCHAR) AS text FROM range(40000)) TO '${path}' (FORMAT csv, COMPRESSION zstd)`,
        ),
      );
      const { rows } = await readAll(await unitOf(path));
      expect(rows.length).toBe(40_000);
      expect(rows.at(-1)?.slice(0, 2)).toEqual([39_999, "39999"]);
    } finally {
      duck.close();
    }
    writeFile(at("parts.ndjson.gz"), Buffer.concat([gzipSync('{"a":1}\n'), gzipSync('{"a":2}\n')]));
    expect((await readAll(await unitOf(at("parts.ndjson.gz")))).rows.length).toBe(2);
  });
});

describe("a file that changes while it is read", () => {
  const lines = Buffer.from('{"a":1}\n'.repeat(150_000));

  it.each([
    ["grows", (path: string) => writeFileSync(path, '{"a":2}\n', { flag: "a" })],
    ["is cut", (path: string) => truncateSync(path, 600_001)],
    ["is written to in place", (path: string) => utimesSync(path, 1, 1)],
  ])("is an error when it %s", async (_, change) => {
    const path = at("changing.ndjson");
    writeFile(path, lines);
    const unit = await unitOf(path, { batchBytes: 300_000 });
    const marks: Mark[] = [];
    const reading = (async () => {
      const { SourceReader } = await import("./reader.js");
      const file = await HeldFile.open(unit);
      const duck = await Duck.sealed(256 * 1024 * 1024, [file.path]);
      try {
        await duck.with(async (connection) => {
          const reader = await SourceReader.open(connection, file);
          for await (const batch of reader.batches()) {
            marks.push(batch.next);
            if (marks.length === 2) change(path);
          }
        });
      } finally {
        duck.close();
        await file.close();
      }
    })();
    await expect(reading).rejects.toMatchObject({ code: "TRB-SOURCE-CHANGED" });
    expect(marks.length).toBe(2);
  });

  it("is an error before it is begun, too", async () => {
    const path = at("before.csv");
    writeFile(path, "a\n1\n");
    const unit = await unitOf(path, { csv: CSV_DEFAULTS });
    writeFile(path, "a\n1\n2\n");
    await expect(readAll(unit)).rejects.toMatchObject({ code: "TRB-SOURCE-CHANGED" });
  });
});
