import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { FileStore } from "../../services/storage/file-store.js";
import { EmbeddedLogReader } from "../../services/stream/embedded/reader.js";
import { EmbeddedLogWriter } from "../../services/stream/embedded/writer.js";
import { eventsOf } from "../support/event-slices.js";

/** Runs `source` in a process of its own; `dist(path)` in it is the URL of a built module. */
function run(source: string, ...args: string[]): ChildProcess {
  const dist = pathToFileURL(join(packageRoot, "dist/")).href;
  const script = `const dist = (path) => ${JSON.stringify(dist)} + path;\n${source}`;
  return spawn(process.execPath, ["--input-type=module", "-e", script, ...args], {
    stdio: ["ignore", "pipe", "inherit"],
  });
}

const ended = (child: ChildProcess) => new Promise((resolve) => child.on("close", resolve));

const WRITER = `
const { EmbeddedLogWriter } = await import(dist("services/stream/embedded/writer.js"));
const [folder, round] = process.argv.slice(1);
const writer = await EmbeddedLogWriter.open({ folder, partitions: 3, segmentBytes: 20000 });
await Promise.all([0, 1, 2, 3].map(async (appender) => {
  for (let n = 0; ; n++) {
    const texts = Array.from({ length: 1 + (n % 7) }, (_, i) => [round, appender, n, i].join("-") + ".".repeat((n * 37) % 400));
    const bytes = Buffer.from(texts.join(""), "latin1");
    const starts = new Uint32Array(texts.length), ends = new Uint32Array(texts.length), slots = new Uint32Array(texts.length);
    let at = 0;
    texts.forEach((text, i) => { starts[i] = at; at += text.length; ends[i] = at; slots[i] = ((n + i) % 3) * 1.5e9; });
    const { names, partitions, positions } = await writer.append({ bytes, count: texts.length, starts, ends, slots });
    process.stdout.write(positions.map((position, i) => names[partitions[i]] + "/" + position + " " + texts[i] + "\\n").join(""));
  }
}));
`;

const CREATOR = `
const { FileStore } = await import(dist("services/storage/file-store.js"));
const [data, name] = process.argv.slice(1);
const store = await FileStore.open({ folder: data + "/lake", staging: data + "/staging" });
for (let n = 0; n < 400; n++) {
  const outcome = await store.putIfAbsent("log/" + n + ".json", Buffer.from(name));
  process.stdout.write(n + " " + outcome + "\\n");
}
`;

describe("several processes", () => {
  let data: string;
  beforeEach(async () => {
    data = await mkdtemp(join(tmpdir(), "tributary-processes-"));
  });
  afterEach(() => rm(data, { recursive: true }));

  test("a writer killed at any moment loses nothing acknowledged, and a reader beside it never notices", async () => {
    const reader = await EmbeddedLogReader.open({ folder: data, partitions: 3 });
    const consumer = await reader.consume("c");
    const delivered = new Map<string, string>();
    const acknowledged = new Map<string, string>();
    const stop = new AbortController();
    const reading = (async () => {
      const last = new Map<string, string>();
      for (let turn = 1; ; turn++) {
        const limit = { maxEvents: 500, maxBytes: 1e6, waitMs: 10_000, signal: stop.signal };
        const batch = await consumer.read(limit);
        if (batch === undefined) {
          if (stop.signal.aborted) return;
          continue;
        }
        for (const { partition, position, text } of eventsOf(batch)) {
          const before = last.get(String(partition)) ?? "0".repeat(position.length);
          expect(Number(position)).toBe(Number(before) + 1);
          last.set(String(partition), position);
          delivered.set(`${partition}/${position}`, text);
        }
        if (turn % 5 === 0) await consumer.commit(last);
      }
    })();
    for (let round = 0; round < 25; round++) {
      const child = run(WRITER, data, String(round));
      const lines = createInterface({ input: child.stdout! });
      let first = true;
      lines.on("line", (line) => {
        const match = /^(\d+\/\d{16}) (.*)$/.exec(line);
        if (match === null) return; // torn by the kill
        acknowledged.set(match[1]!, match[2]!);
        if (first) setTimeout(() => child.kill("SIGKILL"), Math.random() * 120);
        first = false;
      });
      await ended(child);
      expect(first).toBe(false);
    }
    const writer = await EmbeddedLogWriter.open({ folder: data, partitions: 3, segmentBytes: 20_000 });
    const head = await reader.head();
    const total = [...head.values()].reduce((sum, position) => sum + Number(position), 0);
    await expect.poll(() => delivered.size, { timeout: 30_000 }).toBe(total);
    stop.abort();
    await reading;
    for (const [key, text] of acknowledged) expect(delivered.get(key)?.startsWith(text)).toBe(true);
    expect(new Set(delivered.values()).size).toBe(delivered.size);
    await reader.close();
    await writer.close();
  });

  test("writers that cannot see each other's lock never acknowledge one position twice, and lose nothing", async () => {
    const acknowledged = new Map<string, string>();
    let fencedWriters = 0;
    const children: ChildProcess[] = [];
    for (let round = 0; round < 8; round++) {
      // As from a container of its own, or after somebody has cleaned up: nobody's lock is to be seen.
      const blind = `const { readdirSync, rmSync } = await import("node:fs");
for (const name of readdirSync(process.argv[1])) if (name.endsWith(".lock")) rmSync(process.argv[1] + "/" + name);
process.on("uncaughtException", (error) => { process.stdout.write(error.code + "\\n"); process.exit(0); });
`;
      const child = run(blind + WRITER, data, String(round));
      children.push(child);
      await new Promise<void>((resolve) => {
        createInterface({ input: child.stdout! }).on("line", (line) => {
          if (line === "TRB-STREAM-FENCED") fencedWriters++;
          const [, key, text] = /^(\d+\/\d{16}) (.*)$/.exec(line) ?? [];
          if (key === undefined || text === undefined) return;
          expect(acknowledged.get(key) ?? text).toBe(text);
          acknowledged.set(key, text);
          resolve();
        });
        child.on("close", resolve);
      });
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 300));
    }
    for (const child of children) child.kill("SIGTERM");
    await Promise.all(children.map((child) => (child.exitCode ?? child.signalCode) !== null || ended(child)));
    expect(fencedWriters).toBeGreaterThan(4);
    const writer = await EmbeddedLogWriter.open({ folder: data, partitions: 3, segmentBytes: 20_000 });
    const reader = await EmbeddedLogReader.open({ folder: data, partitions: 3 });
    const consumer = await reader.consume("c");
    const delivered = new Map<string, string>();
    for (;;) {
      const batch = await consumer.read({ maxEvents: 5_000, maxBytes: 1e7, waitMs: 200 });
      if (batch === undefined) break;
      for (const { partition, position, text } of eventsOf(batch)) {
        expect(delivered.has(`${partition}/${position}`)).toBe(false);
        delivered.set(`${partition}/${position}`, text);
      }
    }
    for (const [key, text] of acknowledged) expect(delivered.get(key)).toBe(text);
    await reader.close();
    await writer.close();
  });

  test("of two processes that create the same keys each key has one winner, whose bytes stay", async () => {
    const outcomes = await Promise.all(
      ["one", "two"].map(async (name) => {
        const child = run(CREATOR, data, name);
        const result: string[] = [];
        createInterface({ input: child.stdout! }).on("line", (line) => result.push(line.split(" ")[1]!));
        await ended(child);
        return result;
      }),
    );
    const store = await FileStore.open({ folder: join(data, "lake"), staging: join(data, "staging") });
    for (let n = 0; n < 400; n++) {
      const [one, two] = outcomes.map((result) => result[n]);
      expect([one, two].sort()).toEqual(["created", "exists"]);
      expect((await store.get(`log/${n}.json`))?.toString()).toBe(one === "created" ? "one" : "two");
    }
  });
});
