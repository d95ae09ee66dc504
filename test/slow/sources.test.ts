import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import type { Format, Reject } from "../../services/sources/formats.js";
import { count, inspect } from "../../services/sources/inspect.js";
import { LocalRoot } from "../../services/sources/local-root.js";

const MiB = 1024 * 1024;
const folder = mkdtempSync(join(tmpdir(), "sources-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it.each(["ndjson", "csv"] as const)(
  "a record of 3 GB is passed over in the memory of a reader of %s",
  async (format: Format) => {
    const path = join(folder, `x.${format}`);
    writeFileSync(path, 'a\n"1"\n');
    // A hole in the file, of zeros.
    truncateSync(path, 3072 * MiB);
    writeFileSync(path, '\n{"a":2}\n', { flag: "a" });
    const place = { root: new LocalRoot("exports", folder, join(folder, "data")), path: `x.${format}` };
    const limits = { maxRecordBytes: 16 * MiB, readerMemoryBytes: 64 * MiB, readerIdleMs: 60_000 };
    const rejects: Reject[] = [];
    const onRejects = (some: readonly Reject[]) => rejects.push(...some);
    const manifest = await inspect(place, {}, limits);
    expect(await count(place, manifest, 0, limits, { onRejects })).toMatchObject({
      bytes: expect.any(Number) as number,
    });
    const long = rejects.find(({ code }) => code === "TRB-ROW-LENGTH");
    expect(long).toMatchObject({ offset: 6 });
    expect(long!.bytes.length).toBe(64 * 1024);
  },
);
