import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { literal } from "../../services/base/duckdb.js";
import { residentBytes } from "../../services/base/killable.js";
import type { BootstrapJob, Job } from "../../services/bulk/jobs/job.js";
import type { Told } from "../../services/bulk/jobs/job-report.js";
import type { JobRunner } from "../../services/bulk/jobs/job-runner.js";
import { JobStore } from "../../services/bulk/jobs/job-store.js";
import { bootstrapOf, runnerOf, startHere } from "../support/jobs.js";
import { Lake } from "../support/lake.js";
import { rawZstd } from "../support/sources.js";

/** What strangers' exports do to a job, from its order to the tables: a clear end, and nothing half-done. */

/** Whether readers are processes, as what may crash or fill them needs it: starting some takes seconds of each test. */
const readers = vi.hoisted(() => ({ areProcesses: false }));
vi.mock("../../services/sources/source-process.js", async (original) => {
  const real = await original<typeof import("../../services/sources/source-process.js")>();
  const here = await import("../support/readers-here.js");
  return {
    get SourceProcess() {
      return readers.areProcesses ? real.SourceProcess : here.SourceProcess;
    },
  };
});
const withProcesses = () => {
  beforeEach(() => {
    readers.areProcesses = true;
  });
};

const MiB = 1024 * 1024;

let lake: Lake;
let folder: string;
let jobs: JobStore;
let runner: JobRunner | undefined;
/** Called whenever the job that runs tells of itself. */
let onTold: (told: Told) => void;
let count = 0;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
  lake = await Lake.create({ sources: { exports: folder, lake: join(folder, "as-lake") } });
  symlinkSync(lake.folder, join(folder, "as-lake"));
  jobs = new JobStore(lake.context.store);
  onTold = () => undefined;
});
afterEach(async () => {
  await runner?.close();
  runner = undefined;
  readers.areProcesses = false;
  await lake.close();
  rmSync(folder, { recursive: true, force: true });
});

const path = (name: string): string => join(folder, "in", name);
function write(name: string, content: string | Buffer): void {
  mkdirSync(dirname(path(name)), { recursive: true });
  writeFileSync(path(name), content);
}
const line = (id: string, more: Readonly<Record<string, unknown>> = {}): string =>
  `${JSON.stringify({ tenant: "acme", id, rev: 1, name: `n-${id}`, ...more })}\n`;
const linesOf = (from: number, to: number): string =>
  Array.from({ length: to - from }, (_, i) => line(`e${from + i}`)).join("");

/** Runs a job of what lies in `in` to its end, or to where somebody has to look at it. */
async function run(more: Partial<BootstrapJob> = {}): Promise<Job> {
  const id = `job-${count++}`;
  const mapping = { tenant: "tenant", entityId: "id", version: "rev" };
  await jobs.order(bootstrapOf(id, { source: "exports/in", mapping, ...more }));
  runner ??= runnerOf(jobs, {
    start: startHere(lake.context, (told) => onTold(told)),
    lookMs: 20,
    pauseAfter: () => 20,
  });
  for (;;) {
    const job = await jobs.get(id);
    if (["done", "paused", "failed"].includes(job.state.phase)) return job;
    await sleep(10);
  }
}

/** Ids of the entities in raw, and in the model once it has taken in all of it. */
async function landed(): Promise<readonly [raw: number, rows: number]> {
  await (await lake.lane()).look();
  return [(await lake.rawPositions()).length, (await lake.rows()).length];
}

const ended = ({ state }: Job) => [state.phase, state.code];
const parquet = async (name: string, rows: number, more = "") => {
  mkdirSync(path(""), { recursive: true });
  const columns = `'acme' AS tenant, 'e' || i AS id, 1 AS rev, md5(i::VARCHAR) AS name${more}`;
  await lake.query(
    `COPY (SELECT ${columns} FROM range(${rows}) t(i)) TO ${literal(path(name))} (FORMAT parquet, ROW_GROUP_SIZE 10000)`,
  );
};

describe("a file that is not whole pauses its job, and nothing of it is there", () => {
  withProcesses();
  test.each<[string, () => Promise<void> | void]>([
    [
      "Parquet cut short",
      async () => {
        await parquet("a.parquet", 100_000);
        truncateSync(path("a.parquet"), 1_000_000);
      },
    ],
    [
      "Parquet damaged inside",
      async () => {
        await parquet("a.parquet", 100_000);
        const bytes = readFileSync(path("a.parquet"));
        writeFileSync(path("a.parquet"), bytes.fill(0xa5, 400_000, 900_000));
      },
    ],
    [
      "Parquet that claims a billion rows",
      async () => {
        await parquet("a.parquet", 100);
        writeFileSync(path("a.parquet"), claiming(readFileSync(path("a.parquet")), 100, 1_000_000_000));
      },
    ],
    ["gzip cut short", () => write("a.ndjson.gz", gzipSync(linesOf(0, 50_000)).subarray(0, -2_000))],
    [
      "zstd cut short",
      () => write("a.ndjson.zst", rawZstd(Buffer.from(linesOf(0, 50_000))).subarray(0, -2_000)),
    ],
    ["gzip that is none", () => write("a.ndjson.gz", linesOf(0, 10))],
    ["events cut short", () => write("a.pb", Buffer.from([100, 1, 2, 3]))],
  ])("%s", async (name, make) => {
    await make();
    const job = await run(name.startsWith("events") ? { mapping: undefined } : {});
    expect(ended(job)).toEqual(["paused", "TRB-SOURCE-DAMAGED"]);
    expect(job.state.reason).not.toContain(folder);
    expect(await landed()).toEqual([0, 0]);
    // Mended, it is another file: another job's.
    rmSync(path(""), { recursive: true });
    write("a.ndjson", linesOf(0, 10));
    expect(ended(await run())).toEqual(["done", undefined]);
    expect(await landed()).toEqual([10, 10]);
  });
});

test("what is before a damaged file has landed, and stays", async () => {
  // Neither the first, nor the one in the middle, nor the last: these are looked at before anything lands.
  for (const n of [0, 1, 2, 4]) write(`${n}.ndjson`, linesOf(n * 10, n * 10 + 10));
  write("3.ndjson.gz", gzipSync(linesOf(30, 40)).subarray(0, -10));
  expect(ended(await run())).toEqual(["paused", "TRB-SOURCE-DAMAGED"]);
  expect(await landed()).toEqual([30, 30]);
});

describe("what changes under a job pauses it between two chunks", () => {
  test.each<[string, string, () => void]>([
    ["a file that grows", "TRB-SOURCE-CHANGED", () => appendFileSync(path("z.ndjson"), line("late"))],
    ["a file that is replaced", "TRB-SOURCE-CHANGED", () => write("z.ndjson", linesOf(10, 20))],
    ["a file that is gone", "TRB-SOURCE-CHANGED", () => rmSync(path("z.ndjson"))],
    ["a folder that is gone", "TRB-SOURCE-CHANGED", () => rmSync(path(""), { recursive: true })],
    [
      "a file that becomes a link",
      "TRB-SOURCE-LINK",
      () => {
        rmSync(path("z.ndjson"));
        symlinkSync(path("a0.ndjson"), path("z.ndjson"));
      },
    ],
  ])("%s", async (_, code, change) => {
    // Files are read ahead of what has landed; the last of so many is not yet. Without room for two each is by itself.
    lake.context.config.bulk.scratchBytes = 1;
    for (let n = 0; n < 7; n++) write(`a${n}.ndjson`, linesOf(n * 10, n * 10 + 10));
    write("z.ndjson", linesOf(70, 80));
    let changed = false;
    onTold = ({ rowsLanded }) => {
      if (rowsLanded !== 10 || changed) return;
      changed = true;
      change();
    };
    expect(ended(await run())).toEqual(["paused", code]);
    expect(changed).toBe(true);
    // All before it, or all that was read before the folder went: whole files.
    const [raw, rows] = await landed();
    expect(rows).toBe(raw);
    expect([raw % 10, raw >= 10, raw <= 70]).toEqual([0, true, true]);
  });
});

describe("a job is not let anywhere else", () => {
  test.each<[string, string, string, () => void]>([
    [
      "a link among the files",
      "exports/in",
      "TRB-SOURCE-LINK",
      () => symlinkSync("/etc/passwd", path("b.ndjson")),
    ],
    ["a link to a folder", "exports/in", "TRB-SOURCE-LINK", () => symlinkSync("/etc", path("b"))],
    ["a path with ..", "exports/in/../..", "TRB-SOURCE-PATH", () => undefined],
    ["a path out of its root", "exports/../etc", "TRB-SOURCE-PATH", () => undefined],
    ["a root that nobody has configured", "etc/in", "TRB-SOURCE-ROOT", () => undefined],
    ["the lake's own folder", "lake/lake/raw", "TRB-SOURCE-LAKE", () => undefined],
    ["a folder without files", "exports/none", "TRB-SOURCE-EMPTY", () => undefined],
    ["files of several formats", "exports/in", "TRB-SOURCE-FORMAT", () => write("b.csv", "tenant\nx\n")],
  ])("%s", async (_, source, code, make) => {
    write("a.ndjson", linesOf(0, 10));
    make();
    expect(ended(await run({ source }))).toEqual(["paused", code]);
    expect(await landed()).toEqual([0, 0]);
  });
});

test("bad rows are rejected one by one, the others land; too many pause the job before their chunk lands", async () => {
  const bad = [
    line("a", { tenant: undefined }),
    line("b", { tenant: "a b" }),
    line("c", { id: "" }),
    line("d", { rev: "one" }),
    line("e", { rev: -1 }),
    line("f", { amount: "many" }),
    line("g", { labels: { x: 1 } }),
    "no json\n",
    "[1]\n",
    `{"tenant":"acme","id":"\xff"}\n`,
  ];
  write(
    "a.ndjson",
    Buffer.concat([
      Buffer.from(linesOf(0, 5)),
      ...bad.map((one) => Buffer.from(one, "latin1")),
      Buffer.from(linesOf(5, 9)),
    ]),
  );
  const paused = await run({ rejectLimit: bad.length - 1 });
  expect(ended(paused)).toEqual(["paused", "TRB-JOB-REJECTS"]);
  expect(await landed()).toEqual([0, 0]);
  const { state } = await run({ rejectLimit: bad.length });
  expect(state).toMatchObject({ phase: "done", rejected: bad.length, rowsLanded: 9 });
  expect(await landed()).toEqual([9, 9]);
});

test("of what Debezium wrote the rows of its snapshot land, with a schema beside them or without; all else is rejected", async () => {
  const after = (id: string) => ({ tenant: "acme", id, rev: 1, name: `n-${id}` });
  const one = (op: string, more: object) => ({ op, ts_ms: 1, source: { snapshot: "true" }, ...more });
  const lines = [
    one("r", { before: null, after: after("plain") }),
    { schema: { type: "struct" }, payload: one("r", { before: null, after: after("wrapped") }) },
    one("c", { before: null, after: after("created") }),
    { schema: null, payload: one("u", { before: after("updated"), after: after("updated") }) },
    one("d", { before: after("plain"), after: null }),
    one("r", { before: null, after: null }),
    null,
    { schema: null, payload: null },
  ];
  write("a.json", lines.map((each) => `${JSON.stringify(each)}\n`).join(""));
  const { state } = await run({ format: "debezium" });
  expect(state).toMatchObject({ phase: "done", rejected: 6, rowsLanded: 2 });
  await (await lake.lane()).look();
  expect((await lake.rows()).map((row) => (JSON.parse(row) as string[])[1])).toEqual(["plain", "wrapped"]);
});

test("a column of another type than its field refuses the job before anything lands; so does one that is missing", async () => {
  await parquet("a.parquet", 10, ", [i] AS amount");
  const { state } = await run();
  expect(state).toMatchObject({ phase: "failed", reason: expect.stringContaining("amount") });
  rmSync(path("a.parquet"));
  write("a.csv", "id,rev,name\n1,1,x\n");
  expect(ended(await run())).toEqual(["failed", "TRB-BULK-MAPPING"]);
  expect(await landed()).toEqual([0, 0]);
});

test("a CSV's last record whose quote does not end is rejected, whole as it is", async () => {
  write("a.csv", 'tenant,id,rev,name\nacme,1,1,x\nacme,2,1,"y\nacme,3,1,z\n');
  const { state } = await run();
  expect(state).toMatchObject({ phase: "done", rejected: 1, rowsLanded: 1 });
  expect(await landed()).toEqual([1, 1]);
});

test("a CSV's quoted line breaks, quotes and delimiters are its values'", async () => {
  write(
    "a.csv",
    'tenant,id,rev,name\r\nacme,1,1,"two\nlines, ""said"" so"\r\nacme,2,1,plain\r\nacme,"3\n",1,\r\n',
  );
  expect(ended(await run())).toEqual(["done", undefined]);
  await (await lake.lane()).look();
  const rows = (await lake.rows()).map((row) =>
    (JSON.parse(row) as string[]).filter((_, i) => [1, 5].includes(i)),
  );
  expect(rows).toEqual([
    ["1", 'two\nlines, "said" so'],
    ["2", "plain"],
    ["3\n", ""],
  ]);
});

/** The most that processes which this one has started hold, while `work` runs. */
async function peakOf<T>(work: Promise<T>): Promise<readonly [T, number]> {
  let peak = 0;
  const look = setInterval(() => {
    for (const pid of childrenOf(process.pid)) peak = Math.max(peak, residentBytes(pid) ?? 0);
  }, 25);
  try {
    return [await work, peak];
  } finally {
    clearInterval(look);
  }
}

function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").split(" ").filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

describe("memory stays what it is at", () => {
  withProcesses();
  const most = () => lake.context.config.bulk.readerMemoryBytes + 512 * MiB;

  test("a line of 3 GB, which is rejected", async () => {
    write("a.ndjson", `${linesOf(0, 5)}{"tenant":"acme","name":"`);
    // A hole in the file, of zeros.
    truncateSync(path("a.ndjson"), 3072 * MiB);
    appendFileSync(path("a.ndjson"), `"}\n${linesOf(5, 10)}`);
    const [{ state }, peak] = await peakOf(run());
    expect(state).toMatchObject({ phase: "done", rejected: 1, rowsLanded: 10 });
    expect(peak).toBeLessThan(most() / 2);
    expect(await landed()).toEqual([10, 10]);
  });

  test.each(["gz", "zst"])("a bomb of 1.5 GB in a small .%s", async (kind) => {
    const bomb = 1536 * MiB;
    const text = Buffer.from(linesOf(0, 5));
    const after = Buffer.from(`\n${linesOf(5, 10)}`);
    write(`a.ndjson.${kind}`, kind === "gz" ? gzipBomb(text, bomb, after) : zstdBomb(text, bomb, after));
    const [{ state }, peak] = await peakOf(run());
    expect(state).toMatchObject({ phase: "done", rejected: 1, rowsLanded: 10 });
    expect(peak).toBeLessThan(most() / 2);
    expect(await landed()).toEqual([10, 10]);
  });
});

describe("what makes chunks", () => {
  withProcesses();
  test("may be killed in the midst of one, again and again: each row lands once", async () => {
    for (const name of ["a", "b", "c"]) await parquet(`${name}.parquet`, 20_000, `, '${name}' AS number`);
    const mapping = { tenant: "number", entityId: "id", version: "rev" };
    let kills = 4;
    const killing = setInterval(() => {
      for (const pid of childrenOf(process.pid)) {
        if (kills-- > 0) process.kill(pid, "SIGKILL");
      }
    }, 700);
    const job = await run({ mapping }).finally(() => clearInterval(killing));
    expect(ended(job)).toEqual(["done", undefined]);
    expect(kills).toBeLessThan(4);
    const [raw, rows] = await landed();
    expect([raw, rows]).toEqual([60_000, 60_000]);
  });
});

/** A Parquet file whose footer says that there are more rows than there are. */
function claiming(file: Buffer, rows: number, claimed: number): Buffer {
  const footerBytes = file.readUInt32LE(file.length - 8);
  const footer = file.subarray(file.length - 8 - footerBytes, file.length - 8);
  // Field 3 of a file and of a row group, an i64 (Thrift's compact protocol); in groups what follows is another field.
  const said = (value: number) => Buffer.from([0x16, ...zigzag(value)]);
  let changed = footer.toString("latin1");
  const before = said(rows).toString("latin1");
  expect(changed.split(before).length).toBeGreaterThan(2);
  changed = changed.replaceAll(before, said(claimed).toString("latin1"));
  const end = Buffer.alloc(8);
  end.writeUInt32LE(changed.length, 0);
  end.write("PAR1", 4);
  return Buffer.concat([
    file.subarray(0, file.length - 8 - footerBytes),
    Buffer.from(changed, "latin1"),
    end,
  ]);
}

function zigzag(value: number): number[] {
  const out: number[] = [];
  let rest = value * 2;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) out.push((rest % 0x80) | 0x80);
  return [...out, rest];
}

/** Packs of one text after the other are a pack. */
function gzipBomb(before: Buffer, zeros: number, after: Buffer): Buffer {
  const part = gzipSync(Buffer.alloc(64 * MiB), { level: 9 });
  const parts = Array.from({ length: zeros / (64 * MiB) }, () => part);
  return Buffer.concat([gzipSync(before), ...parts, gzipSync(after)]);
}

/** Frames of blocks that repeat one byte (RFC 8878). */
function zstdBomb(before: Buffer, zeros: number, after: Buffer): Buffer {
  const head = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3]);
  const blocks: Buffer[] = [];
  const size = 128 * 1024;
  for (let left = zeros / size; left > 0; left--) {
    const block = Buffer.alloc(4);
    block.writeUIntLE((size << 3) | (1 << 1) | (left === 1 ? 1 : 0), 0, 3);
    blocks.push(block);
  }
  return Buffer.concat([rawZstd(before), head, ...blocks, rawZstd(after)]);
}
