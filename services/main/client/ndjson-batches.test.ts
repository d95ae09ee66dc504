import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { describeInput, fileBatches, streamBatches } from "./ndjson-batches.js";

const folder = mkdtempSync(join(tmpdir(), "tributary-batches-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("cutting lines into batches", () => {
  it("loses and invents nothing, however the input is chunked and cut", async () => {
    const line = fc.string({ maxLength: 12 }).map((text) => text.replaceAll("\n", ""));
    await fc.assert(
      fc.asyncProperty(
        fc.array(line, { maxLength: 30 }),
        fc.boolean(),
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 5 }),
        fc.record({ lines: fc.integer({ min: 1, max: 5 }), bytes: fc.integer({ min: 1, max: 30 }) }),
        async (lines, ends, sizes, limits) => {
          const text = Buffer.from(lines.join("\n") + (ends ? "\n" : ""));
          const chunks: Buffer[] = [];
          for (let at = 0, i = 0; at < text.length; i++) {
            const size = sizes[i % sizes.length]!;
            chunks.push(text.subarray(at, at + size));
            at += size;
          }
          const expected = lines.flatMap((each, i) => (/^[ \t\r]*$/.test(each) ? [] : [[i + 1, each]]));
          const got: unknown[] = [];
          for await (const batch of streamBatches(Readable.from(chunks), limits)) {
            const parts = batch.body.toString().split("\n").slice(0, -1);
            expect(parts.length).toBe(batch.lineNumbers.length);
            expect(parts.length).toBeLessThanOrEqual(limits.lines);
            if (parts.length > 1) expect(batch.body.length).toBeLessThanOrEqual(limits.bytes);
            for (const [i, part] of parts.entries()) got.push([batch.lineNumbers[i], part]);
          }
          expect(got).toEqual(expected);
        },
      ),
    );
  });

  it("goes on from the end of any batch", async () => {
    const path = join(folder, "input.ndjson");
    writeFileSync(path, "one\n\ntwo\nthree\n\n\nfour");
    const file = await describeInput(path);
    const limits = { lines: 1, bytes: 5 };
    const all = [];
    for await (const batch of fileBatches(file, { lines: 0, bytes: 0 }, limits)) all.push(batch);
    expect(all.map(({ lineNumbers }) => lineNumbers)).toEqual([[1], [3], [4], [7]]);
    for (const [i, { end }] of all.entries()) {
      const rest = [];
      for await (const batch of fileBatches(file, end, limits)) rest.push(batch.body.toString());
      expect(rest).toEqual(all.slice(i + 1).map(({ body }) => body.toString()));
    }
  });
});
