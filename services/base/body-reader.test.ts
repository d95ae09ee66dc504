import { randomBytes } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { PassThrough } from "node:stream";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";
import type { Reservation } from "./admission.js";
import { BodyReader } from "./body-reader.js";
import { TributaryError } from "./errors.js";

const code = (expected: string) => expect.objectContaining({ code: expected }) as Error;

/** A request whose body the test sends. */
function open(gzip: boolean, maxBytes = 1_000_000, mayGrow = Number.POSITIVE_INFINITY) {
  const request = Object.assign(new PassThrough(), { complete: false });
  request.on("finish", () => {
    request.complete = true;
  });
  const held = { bytes: 0 };
  const reservation = {
    grow: (bytes: number) => {
      if (held.bytes + bytes > mayGrow) throw new TributaryError("TRB-BUS-BUSY");
      held.bytes += bytes;
    },
    release: () => {
      held.bytes = 0;
    },
  } as Reservation;
  const reader = new BodyReader(request as unknown as IncomingMessage, gzip, maxBytes);
  return { request, held, reader, reservation, body: reader.read(reservation) };
}

test.each([false, true])("a body is read whole (gzip: %s), and counted as it comes", async (gzip) => {
  const content = Buffer.from(Array.from({ length: 300_000 }, (_, i) => i % 251));
  const { request, held, body } = open(gzip);
  const sent = gzip ? gzipSync(content) : content;
  for (let at = 0; at < sent.length; at += 10_000) request.write(sent.subarray(at, at + 10_000));
  request.end();
  expect(Buffer.concat(await body).equals(content)).toBe(true);
  // Inflating has buffers of its own, whatever there is to inflate.
  expect(held.bytes).toBe(content.length + (gzip ? 112 * 1024 : 0));
});

test("gzip is taken in no faster than it is inflated", async () => {
  const { request, body } = open(true, 10_000_000);
  const sent = gzipSync(randomBytes(2_000_000));
  let paused = 0;
  request.on("pause", () => paused++);
  for (let at = 0; at < sent.length; at += 50_000) request.write(sent.subarray(at, at + 50_000));
  request.end();
  expect(Buffer.concat(await body)).toHaveLength(2_000_000);
  expect(paused).toBeGreaterThan(0);
});

test.each([false, true])("what has not come is not counted, and costs nothing (gzip: %s)", async (gzip) => {
  const { request, held, body } = open(gzip);
  await new Promise((resolve) => setImmediate(resolve));
  expect(held.bytes).toBe(0);
  request.write(gzip ? gzipSync("abc") : "abc");
  await new Promise((resolve) => setImmediate(resolve));
  expect(held.bytes).toBeGreaterThan(2);
  request.end();
  await body;
});

test.each([false, true])("a connection that closes without a word ends it (gzip: %s)", async (gzip) => {
  const { request, body } = open(gzip);
  request.write(gzipSync("abc").subarray(0, 5));
  request.destroy();
  await expect(body).rejects.toThrow(code("TRB-REQ-UNREADABLE"));
});

test("a connection that closed before anybody read ends it", async () => {
  const { request, reservation } = open(false);
  const gone = new PassThrough();
  gone.destroy();
  await new Promise((resolve) => gone.once("close", resolve));
  const reader = new BodyReader(gone as unknown as IncomingMessage, false, 1000);
  await expect(reader.read(reservation)).rejects.toThrow(code("TRB-REQ-UNREADABLE"));
  request.end();
});

test("a connection that fails ends it; a server that finds it too slow is quoted", async () => {
  const failed = open(false);
  failed.request.destroy(new Error("ECONNRESET"));
  await expect(failed.body).rejects.toThrow(code("TRB-REQ-UNREADABLE"));
  const slow = open(false);
  slow.request.emit("error", new TributaryError("TRB-REQ-TOO-SLOW"));
  await expect(slow.body).rejects.toThrow(code("TRB-REQ-TOO-SLOW"));
});

test.each([false, true])("too much ends it, and the rest is read past (gzip: %s)", async (gzip) => {
  const { request, body } = open(gzip, 100_000);
  // More than inflating takes in at once, so that it is paused when it ends.
  const content = randomBytes(2_000_000);
  const sent = gzip ? gzipSync(content) : content;
  for (let at = 0; at < sent.length; at += 50_000) request.write(sent.subarray(at, at + 50_000));
  await expect(body).rejects.toThrow(code("TRB-REQ-TOO-LARGE"));
  const gone = new Promise((resolve) => request.once("close", resolve));
  request.end(Buffer.alloc(500_000));
  await gone;
});

test("no room ends it, as does being sent away; nothing is held then, though the rest still comes", async () => {
  const full = open(true, 1_000_000, 1000);
  full.request.end(gzipSync(Buffer.alloc(2000)));
  await expect(full.body).rejects.toThrow(code("TRB-BUS-BUSY"));
  const dismissed = open(false);
  dismissed.request.write("abc");
  dismissed.reader.stop(new TributaryError("TRB-BUS-BUSY"));
  await expect(dismissed.body).rejects.toThrow(code("TRB-BUS-BUSY"));
  expect(dismissed.held.bytes).toBe(0);
  const gone = new Promise((resolve) => dismissed.request.once("close", resolve));
  dismissed.request.end("later");
  await gone;
  expect(dismissed.held.bytes).toBe(0);
});

test("gzip that is damaged or ends early is refused", async () => {
  for (const sent of [gzipSync("abc").subarray(0, 12), Buffer.from("not gzip at all")]) {
    const { request, body } = open(true);
    request.end(sent);
    await expect(body).rejects.toThrow(code("TRB-REQ-ENCODING"));
  }
});
