import { createServer, type Http2Server } from "node:http2";
import type { AddressInfo } from "node:net";
import type { Readable } from "node:stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import { connectKinesis } from "./connect.js";

/** Speaks HTTP/2, as pushing needs it; `answers` says whether requests get as much as the beginning of an answer. */
let server: Http2Server;
let answers = false;
beforeEach(async () => {
  server = createServer();
  server.on("stream", (stream) => {
    if (!answers) return;
    stream.respond({ ":status": 200 });
    stream.write("begun");
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
});
afterEach(async () => {
  await new Promise((done) => server.close(done));
});

function request(requestTimeout?: number) {
  const { port } = server.address() as AddressInfo;
  const client = connectKinesis({ region: "us-east-1", fanOut: true, answerMs: 100 });
  const { requestHandler } = client.config;
  const order = { protocol: "http:", hostname: "127.0.0.1", port, method: "POST", path: "/", headers: {} };
  const options = requestTimeout === undefined ? {} : { requestTimeout };
  return requestHandler.handle(order as Parameters<typeof requestHandler.handle>[0], options);
}

test("where records are pushed, too, an answer that does not come is not waited for", async () => {
  answers = false;
  await expect(request()).rejects.toMatchObject({ name: "TimeoutError" });
});

test("what is pushed ends when nothing more comes", async () => {
  answers = true;
  const { response } = await request(300);
  const pieces: string[] = [];
  try {
    for await (const piece of response.body as Readable) pieces.push(String(piece));
  } catch {
    // An end, too.
  }
  expect(pieces).toEqual(["begun"]);
});
