import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import { encodeAnswer, encodeResult } from "../../../clients/producer/test/fake-bus.js";
import { encodeEvent, encodeRequest } from "../../contracts/encode-event.js";
import { frames } from "../../contracts/envelope.js";
import { type PublishOptions, publishBodies, publishFile } from "./publish.js";
import { runPublish } from "./publish-report.js";

/** A bus that keeps the lines it is sent; lines that hold "bad" are rejected, others for now while `holds` says so. */
class FakeBus {
  readonly lines: string[] = [];
  requests = 0;
  open = 0;
  mostOpen = 0;
  /** Answers instead of taking the request, where it writes an answer. */
  intercept: (request: number, body: Buffer, response: ServerResponse) => boolean = () => false;
  delayMs = 0;
  holds: (line: string) => boolean = () => false;
  private readonly server: Server;

  constructor() {
    this.server = createServer((request, response) => void this.serve(request, response));
  }

  async start(): Promise<void> {
    await new Promise<void>((done) => this.server.listen(0, "127.0.0.1", done));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
  }

  private async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.mostOpen = Math.max(this.mostOpen, ++this.open);
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    const number = ++this.requests;
    if (this.delayMs > 0) await new Promise((go) => setTimeout(go, this.delayMs));
    this.open--;
    if (this.intercept(number, body, response)) return;
    if (request.headers["content-type"] === "application/x-protobuf") {
      const { count } = frames(body)!;
      // One rejection (code "X", message "m"), then counts: accepted, rejected.
      const result = Buffer.from([10, 6, 34, 1, 88, 42, 1, 109]);
      response.setHeader("content-type", "application/x-protobuf");
      response.end(Buffer.concat([result, Buffer.from([16, count - 1, 24, 1])]));
      return;
    }
    const lines = body.toString("utf8").split("\n").slice(0, -1);
    const results = lines.map((line) => {
      if (this.holds(line)) return { code: "TRB-BUS-TABLE-HELD", message: "later", retryable: true };
      this.lines.push(line);
      return line.includes("bad")
        ? { code: "TRB-EVENT-MALFORMED", message: "no", retryable: false }
        : undefined;
    });
    response.setHeader("content-type", "application/x-protobuf");
    response.end(encodeAnswer(results.map((refusal) => encodeResult(refusal, 1))));
  }
}

const refuse = (response: ServerResponse, status: number, code: string, headers = {}): true => {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify({ error: { code, message: "words" } }));
  return true;
};

const folder = mkdtempSync(join(tmpdir(), "tributary-publish-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;
const fileOf = (content: string | Uint8Array, name = `input-${files++}.ndjson`): string => {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
};
const numbered = (count: number): string[] => Array.from({ length: count }, (_, i) => `{"n":${i}}`);

let bus: FakeBus;
beforeEach(async () => {
  bus = new FakeBus();
  await bus.start();
});
afterEach(() => bus.stop());

const publish = (input: PublishOptions["input"], more: Partial<PublishOptions> = {}) =>
  publishFile({ token: "t", input, ...more, url: more.url ?? bus.url });

describe("publishing a file", () => {
  it("sends every line once, in batches, and leaves no resume point behind", async () => {
    const lines = numbered(1234);
    const path = fileOf(`${lines.join("\n")}\n`);
    const summary = await publish(path, { batch: 100 });
    expect(summary).toMatchObject({ accepted: 1234, rejected: 0, interrupted: false, failure: undefined });
    expect([...bus.lines].sort()).toEqual([...lines].sort());
    expect(bus.requests).toBe(13);
    expect(() => readFileSync(`${path}.tributary-resume`)).toThrow("ENOENT");
  });

  it("keeps the order when one request is in flight at a time", async () => {
    const lines = numbered(50);
    await publish(fileOf(lines.join("\n")), { batch: 3, concurrency: 1 });
    expect(bus.lines).toEqual(lines);
    expect(bus.mostOpen).toBe(1);
  });

  it("has no more requests in flight than asked for", async () => {
    bus.delayMs = 5;
    await publish(fileOf(numbered(60).join("\n")), { batch: 2, concurrency: 3 });
    expect(bus.mostOpen).toBe(3);
  });

  it("reads gzip by its first bytes, whatever the name, several members included", async () => {
    const packed = Buffer.concat([gzipSync('{"n":1}\n{"n":2}\n'), gzipSync('{"n":3}')]);
    expect(await publish(fileOf(packed, "no-suffix"))).toMatchObject({ accepted: 3 });
    expect(await publish(Readable.from([packed.subarray(0, 1), packed.subarray(1)]))).toMatchObject({
      accepted: 3,
    });
    expect(bus.lines.slice(0, 3)).toEqual(['{"n":1}', '{"n":2}', '{"n":3}']);
  });

  it("names rejected lines by their number in the file, blank lines counted", async () => {
    const path = fileOf('\ufeff{"n":1}\r\n\n  \n{"bad":1}\n{"n":2}\n{"bad":2}');
    const summary = await publish(path, { batch: 1 });
    expect(summary).toMatchObject({ accepted: 2, rejected: 2 });
    expect(summary.rejections).toEqual([
      { line: 4, code: "TRB-EVENT-MALFORMED", message: "no" },
      { line: 6, code: "TRB-EVENT-MALFORMED", message: "no" },
    ]);
    expect([...bus.lines].sort()).toContain('{"n":1}\r');
  });

  it("shows the first rejections by line, and counts the rest", async () => {
    const lines = Array.from({ length: 100 }, () => "bad");
    const { rejections, rejected } = await publish(fileOf(lines.join("\n")), { batch: 7 });
    expect(rejected).toBe(100);
    expect(rejections.map(({ line }) => line)).toEqual(Array.from({ length: 20 }, (_, i) => i + 1));
  });

  it("takes an empty file for nothing to do", async () => {
    expect(await publish(fileOf(""))).toMatchObject({ accepted: 0, rejected: 0, failure: undefined });
    expect(bus.requests).toBe(0);
  });

  it("halves a batch that the server finds too large, and rejects the line that alone is", async () => {
    bus.intercept = (_, body, response) => body.length > 40 && refuse(response, 413, "TRB-REQ-TOO-LARGE");
    const lines = [...numbered(10), `{"long":"${"x".repeat(50)}"}`, '{"n":11}'];
    const summary = await publish(fileOf(lines.join("\n")));
    expect(summary).toMatchObject({ accepted: 11, rejected: 1 });
    expect(summary.rejections).toEqual([{ line: 11, code: "TRB-REQ-TOO-LARGE", message: "words" }]);
    expect(bus.lines).toHaveLength(11);
  });

  it("says what is wrong with its input", async () => {
    await expect(publish(join(folder, "missing"))).rejects.toMatchObject({ code: "TRB-CLI-SOURCE" });
    await expect(publish(folder)).rejects.toMatchObject({ code: "TRB-CLI-SOURCE" });
    const cut = gzipSync(numbered(2000).join("\n")).subarray(0, 500);
    const { failure } = await publish(fileOf(cut));
    expect(failure).toMatchObject({ code: "TRB-CLI-SOURCE", message: expect.stringContaining("gzip") });
  });
});

describe("when the server is not well", () => {
  it("waits as long as it asks, and sends again, on 429 and 503", async () => {
    bus.intercept = (request, _, response) => {
      if (request === 1) return refuse(response, 429, "TRB-BUS-BUSY", { "retry-after": "0.05" });
      return request === 2 && refuse(response, 503, "TRB-BUS-STREAM-DOWN");
    };
    expect(await publish(fileOf(numbered(3).join("\n")))).toMatchObject({ accepted: 3 });
    expect(bus.requests).toBe(3);
  });

  it("sends those lines again, in their order, that are refused for now, and no others", async () => {
    const seen: string[] = [];
    bus.holds = (line) => {
      seen.push(line);
      return line.includes("held") && seen.filter((each) => each === line).length < 3;
    };
    const lines = ['{"n":1}', '{"held":1}', '{"bad":1}', '{"held":"bad"}', '{"n":2}', '{"held":2}'];
    const summary = await publish(fileOf(lines.join("\n\n")), { concurrency: 1 });
    expect(summary).toMatchObject({ accepted: 4, rejected: 2, failure: undefined });
    expect(summary.rejections.map(({ line }) => line)).toEqual([5, 7]);
    const held = lines.filter((line) => line.includes("held"));
    expect(seen).toEqual([...lines, ...held, ...held]);
    expect(bus.lines).toEqual([...lines.filter((line) => !held.includes(line)), ...held]);
  });

  it("does not pass over a batch of which something is refused for now, and goes on there", async () => {
    const lines = numbered(40);
    const path = fileOf(lines.join("\n"));
    bus.holds = (line) => line === '{"n":17}';
    const first = await publish(path, { batch: 5, concurrency: 1, patienceMs: 250 });
    expect(first).toMatchObject({ accepted: 15, failure: { code: "TRB-BUS-TABLE-HELD" } });
    expect(first.resumeFile).toBeDefined();
    bus.holds = () => false;
    const second = await publish(path, { batch: 5, concurrency: 1 });
    expect(second).toMatchObject({ accepted: 40, rejected: 0, resumedAfterLines: 15 });
    expect(new Set(bus.lines)).toEqual(new Set(lines));
    expect(() => readFileSync(`${path}.tributary-resume`)).toThrow("ENOENT");
  });

  it("sends again when a connection is cut after the first success", async () => {
    bus.intercept = (request, _, response) => {
      if (request !== 3) return false;
      response.destroy();
      return true;
    };
    const summary = await publish(fileOf(numbered(6).join("\n")), { batch: 1, concurrency: 1 });
    expect(summary).toMatchObject({ accepted: 6, failure: undefined });
  });

  it("ends at once, by code, when nobody listens or somebody else answers", async () => {
    const path = fileOf(numbered(3).join("\n"));
    const gone = bus.url;
    await bus.stop();
    const unreachable = await publish(path, { url: gone });
    expect(unreachable).toMatchObject({ accepted: 0, resumeFile: undefined });
    expect(unreachable.failure).toMatchObject({ code: "TRB-CLI-UNREACHABLE" });
    expect(unreachable.failure!.message).toContain("nothing listens there");
    await expect(publish(path, { url: "ftp://x" })).rejects.toMatchObject({ code: "TRB-CLI-USAGE" });
    bus = new FakeBus();
    await bus.start();
    bus.intercept = (_, __, response) => {
      response.writeHead(404).end("<html>");
      return true;
    };
    expect((await publish(path)).failure).toMatchObject({ code: "TRB-CLI-UNREACHABLE" });
    expect(bus.requests).toBe(1);
  });

  it("takes an answer that does not speak of every line for none, and sends them again", async () => {
    bus.intercept = (request, _body, response) => {
      if (request === 2) response.end();
      if (request === 3) response.end(encodeAnswer([encodeResult(undefined, 1)]));
      return request === 2 || request === 3;
    };
    const input = fileOf(numbered(9).join("\n"));
    const summary = await publishFile({ input, url: bus.url, token: "t", batch: 3, concurrency: 1 });
    expect(summary).toMatchObject({ accepted: 9, rejected: 0, failure: undefined });
    expect(bus.lines).toEqual(numbered(9));
    // Never met: whatever answers so is no bus.
    bus.intercept = (_request, _body, response) => response.end() !== undefined;
    const other = await publishFile({ input: fileOf("{}\n"), url: bus.url, token: "t" });
    expect(other).toMatchObject({ accepted: 0, failure: { code: "TRB-CLI-UNREACHABLE" } });
  });

  it("ends at once when the token does not do", async () => {
    bus.intercept = (_, __, response) => refuse(response, 401, "TRB-AUTH-EXPIRED");
    const { failure } = await publish(fileOf("{}"));
    expect(failure).toMatchObject({ code: "TRB-AUTH-EXPIRED", message: "words" });
    expect(bus.requests).toBe(1);
  });

  it("loses patience when nothing succeeds for long", async () => {
    bus.intercept = (_, __, response) => refuse(response, 503, "TRB-BUS-STREAM-DOWN");
    const { failure } = await publish(fileOf("{}"), { patienceMs: 300 });
    expect(failure).toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
    expect(bus.requests).toBeGreaterThan(1);
  });
});

describe("the resume point", () => {
  const lines = numbered(40);
  /** Fails for good at the seventh request. */
  const failLate = () => {
    bus.intercept = (request, _, response) => request > 6 && refuse(response, 401, "TRB-AUTH-EXPIRED");
  };
  const options = { batch: 2, concurrency: 3 };

  it.each([["plain"], ["gzip"]])(
    "lets a %s file go on, with every line sent and totals of both runs",
    async (kind) => {
      const text = lines.map((line, i) => (i === 1 ? "bad" : line)).join("\n");
      const path = fileOf(kind === "gzip" ? gzipSync(text) : text);
      failLate();
      const first = await publish(path, options);
      expect(first.failure).toMatchObject({ code: "TRB-AUTH-EXPIRED" });
      expect(first.resumeFile).toBe(`${path}.tributary-resume`);
      const before = bus.lines.length;
      bus.intercept = () => false;
      const second = await publish(path, options);
      expect(second).toMatchObject({ accepted: 39, rejected: 1, failure: undefined, resumeFile: undefined });
      expect(second.resumedAfterLines).toBeGreaterThan(0);
      expect(second.resumedAfterLines).toBeLessThanOrEqual(before);
      expect(new Set(bus.lines)).toEqual(new Set(text.split("\n")));
      expect(bus.lines.length).toBeLessThan(40 + before);
      expect(() => readFileSync(first.resumeFile!)).toThrow("ENOENT");
    },
  );

  it("never passes over a batch that was not answered, though later ones were", async () => {
    bus.intercept = (_, body, response) =>
      body.toString().includes('"n":4}') && refuse(response, 401, "TRB-AUTH-EXPIRED");
    const path = fileOf(lines.join("\n"));
    await publish(path, { batch: 1, concurrency: 8 });
    expect(bus.lines.length).toBeGreaterThan(4);
    bus.intercept = () => false;
    bus.lines.length = 0;
    const second = await publish(path, { batch: 1 });
    expect(second.resumedAfterLines).toBe(4);
    expect(bus.lines).toContain('{"n":4}');
    expect(second.accepted).toBe(40);
  });

  it("does not count for a changed file, another server, or when told to start over", async () => {
    const path = fileOf(lines.join("\n"));
    const broken = async () => {
      bus.requests = 0;
      failLate();
      expect((await publish(path, { ...options, resume: false })).resumeFile).toBeDefined();
      bus.intercept = () => false;
    };
    await broken();
    expect((await publish(path, { resume: false })).resumedAfterLines).toBe(0);
    await broken();
    writeFileSync(path, `${lines.join("\n")}\n`);
    expect((await publish(path)).resumedAfterLines).toBe(0);
    await broken();
    const other = new FakeBus();
    await other.start();
    expect(await publish(path, { url: other.url })).toMatchObject({ resumedAfterLines: 0, accepted: 40 });
    await other.stop();
    await broken();
    writeFileSync(`${path}.tributary-resume`, "{");
    expect((await publish(path)).resumedAfterLines).toBe(0);
  });

  it("is kept when the signal stops it, also while it waits for the server or for its input", async () => {
    const stop = new AbortController();
    const path = fileOf(lines.join("\n"));
    bus.intercept = (request, _, response) => {
      if (request < 4) return false;
      stop.abort();
      return refuse(response, 503, "TRB-BUS-STREAM-DOWN", { "retry-after": "30" });
    };
    const stopped = await publish(path, { batch: 1, concurrency: 1, signal: stop.signal });
    expect(stopped).toMatchObject({ interrupted: true, failure: undefined, accepted: 3 });
    expect(stopped.resumeFile).toBeDefined();
    bus.intercept = () => false;
    expect(await publish(path)).toMatchObject({ resumedAfterLines: 3, accepted: 40 });

    const silent = new PassThrough();
    silent.write('{"n":1}\n');
    const again = new AbortController();
    const waiting = publish(silent, { signal: again.signal });
    setTimeout(() => again.abort(), 20);
    expect(await waiting).toMatchObject({ interrupted: true });
  });
});

describe("publishing bodies", () => {
  it("counts what the answers say, and why events were rejected", async () => {
    const event = encodeEvent({ tenantId: "t", entityId: "e" });
    const bodies = [2, 3, 4].map((count) => ({ bytes: encodeRequest(new Array(count).fill(event)) }));
    const summary = await publishBodies({ url: bus.url, token: "t", bodies });
    expect(summary).toMatchObject({ accepted: 6, rejected: 3, requests: 3, rejectedByCode: { X: 3 } });
  });

  it("sends those events again that are refused for now, and counts each once", async () => {
    const event = (id: string) =>
      encodeEvent({ tenantId: "t", entityType: "x.Y", entityId: id, operation: 3, version: 1 });
    const ok = [10, 2, 8, 1];
    const rejected = [10, 6, 34, 1, 88, 42, 1, 109];
    const later = [10, 5, 34, 1, 89, 48, 1];
    const bodies: Buffer[] = [];
    bus.intercept = (number, body, response) => {
      bodies.push(body);
      const counts = [
        [...later, ...ok, ...rejected, ...later, 16, 1, 24, 3],
        [...later, ...ok, 16, 1, 24, 1],
        [...ok, 16, 1],
      ][number - 1]!;
      response.setHeader("content-type", "application/x-protobuf");
      response.end(Buffer.from(counts));
      return true;
    };
    const answers: unknown[] = [];
    const events = ["a", "b", "c", "d"].map(event);
    const summary = await publishBodies({
      url: bus.url,
      token: "t",
      bodies: [{ bytes: encodeRequest(events) }],
      onAnswer: (receipt) => answers.push(receipt),
    });
    expect(summary).toMatchObject({ accepted: 3, rejected: 1, requests: 1, rejectedByCode: { X: 1 } });
    expect(answers).toMatchObject([{ accepted: 3, rejections: [{ index: 2, code: "X" }] }]);
    const expected = [events, [events[0]!, events[3]!], [events[0]!]];
    expect(bodies).toEqual(expected.map((each) => encodeRequest(each)));
  });

  it("fails by the server's code", async () => {
    bus.intercept = (_, __, response) => refuse(response, 403, "TRB-AUTH-ROLE");
    const bodies = [{ bytes: Buffer.alloc(0) }];
    await expect(publishBodies({ url: bus.url, token: "t", bodies })).rejects.toMatchObject({
      code: "TRB-AUTH-ROLE",
    });
  });
});

describe("the command", () => {
  const spoken = () => {
    const text = { out: "", err: "" };
    return {
      text,
      out: { write: (part: string) => (text.out += part) },
      err: { write: (part: string) => (text.err += part) },
    };
  };

  it("tells counts and rejections, and ends with 0 only when nothing was rejected", async () => {
    const io = spoken();
    const good = fileOf("{}\n{}");
    expect(await runPublish({ url: bus.url, token: "t", input: good }, io)).toBe(0);
    expect(io.text.out).toMatch(/^2 accepted, 0 rejected/);
    const mixed = spoken();
    expect(await runPublish({ url: bus.url, token: "t", input: fileOf("{}\nbad") }, mixed)).toBe(1);
    expect(mixed.text.out).toMatch(/2 {2}TRB-EVENT-MALFORMED {2}no/);
  });

  it("answers with one JSON object, failures included", async () => {
    const io = spoken();
    await runPublish({ url: bus.url, token: "t", input: fileOf("{}\nbad"), json: true }, io);
    expect(JSON.parse(io.text.out)).toMatchObject({ accepted: 1, rejected: 1, rejections: [{ line: 2 }] });
    expect(io.text.err).toBe("");
    bus.intercept = (_, __, response) => refuse(response, 401, "TRB-AUTH-EXPIRED");
    const failed = spoken();
    expect(await runPublish({ url: bus.url, token: "t", input: fileOf("{}"), json: true }, failed)).toBe(1);
    expect(JSON.parse(failed.text.out)).toMatchObject({ error: { code: "TRB-AUTH-EXPIRED" } });
  });
});
