import { describe, expect, it } from "vitest";
import { CsvSplitter } from "./csv-splitter.js";
import { CSV_DEFAULTS } from "./formats.js";
import { FrameSplitter } from "./frame-splitter.js";
import { LineSplitter } from "./line-splitter.js";
import type { SplitterOptions } from "./splitter.js";

const MiB = 1024 * 1024;
const options: SplitterOptions = { maxRecordBytes: MiB, from: { row: 0 }, start: 0, startRow: 0 };

describe("a record of any length", () => {
  it.each([
    ["of lines", new LineSplitter(1, options), "{x\n", "\n{y\n"],
    ["of CSV", new CsvSplitter(1, CSV_DEFAULTS, options), "x\n", "\ny\n"],
    ["of CSV, in quotes", new CsvSplitter(1, CSV_DEFAULTS, options), 'x\n"', '\n"\ny\n'],
    // 160 MiB and three bytes, as a varint.
    [
      "of events",
      new FrameSplitter(1, options),
      Buffer.from([1, 0x78, 0x83, 0x80, 0x80, 0x50]),
      Buffer.from([1, 2, 3, 1, 0x79]),
    ],
  ])("%s costs no memory, nor do commas within", (_, splitter, before, after) => {
    const piece = Buffer.alloc(MiB, ",");
    const memory = () => process.memoryUsage().arrayBuffers + process.memoryUsage().heapUsed;
    splitter.push(Buffer.from(before));
    const first = memory();
    let most = 0;
    for (let i = 0; i < 160; i++) {
      splitter.push(piece);
      if (i % 10 === 0) most = Math.max(most, memory());
    }
    splitter.push(Buffer.from(after));
    expect(splitter.end()).toBeUndefined();
    expect(most - first).toBeLessThan(100 * MiB);
    const { records, rejects } = splitter.take();
    const texts = Array.from({ length: records.count }, (_, at) =>
      records.bytes.toString("utf8", records.fields[at * 2], records.fields[at * 2 + 1]),
    );
    expect(texts.map((text) => text.replace("{", ""))).toEqual(["x", "y"]);
    const start = texts[0]!.length + 1;
    expect(records.ordinals).toEqual([0, 2]);
    expect(records.offsets[0]).toBe(0);
    expect(rejects.map(({ row, code, offset }) => [row, code, offset])).toEqual([
      [1, "TRB-ROW-LENGTH", start],
    ]);
    expect(splitter.mark.offset).toBe(before.length + 160 * MiB + after.length);
  });
});
