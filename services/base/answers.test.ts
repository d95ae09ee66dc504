import { createServer, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test } from "vitest";
import { AnswerPace, onceAnswered } from "./answers.js";
import { buildServer } from "./http.js";

const MiB = 1024 * 1024;

let server: Server;
let pace: AnswerPace;
let answer: (response: ServerResponse, socket: Socket, url: string) => void;
beforeEach(async () => {
  pace = new AnswerPace({ minBodyBytesPerSecond: 50_000, answerGraceMs: 800 });
  server = createServer((request, response) => answer(response, request.socket, request.url ?? ""));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});
afterEach(async () => {
  pace.stop();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

/** A connection that has sent these requests and reads only when told to. */
async function ask(...urls: string[]): Promise<Socket> {
  const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
  socket.on("error", () => undefined);
  await new Promise((resolve) => socket.once("connect", resolve));
  socket.write(urls.map((url) => `GET ${url} HTTP/1.1\r\nhost: x\r\n\r\n`).join(""));
  return socket;
}
const soon = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

test("an answer that nobody reads is cut with its connection, and those behind it are over too", async () => {
  const over: string[] = [];
  answer = (response, socket, url) => {
    pace.watch(response, socket);
    onceAnswered(response, socket, () => over.push(url));
    response.end(Buffer.alloc(url === "/long" ? 40 * MiB : 1));
  };
  const socket = await ask("/long", "/behind");
  while (over.length < 2) await soon(10);
  expect(over.sort()).toEqual(["/behind", "/long"]);
  socket.destroy();
});

test("an answer that is read at the pace is left in peace, however long it takes", async () => {
  const over: string[] = [];
  let complete = false;
  const started = performance.now();
  answer = (response, socket, url) => {
    pace.watch(response, socket);
    onceAnswered(response, socket, () => {
      complete = response.writableFinished;
      over.push(url);
    });
    // In pieces, each when the one before has left.
    let left = 320;
    const more = () => {
      while (left-- > 0) if (!response.write(Buffer.alloc(64 * 1024))) return;
      response.end();
    };
    response.on("drain", more);
    more();
  };
  const socket = await ask("/");
  let read = 0;
  socket.on("data", (chunk) => {
    read += chunk.length;
    socket.pause();
    setTimeout(() => socket.resume(), 5);
  });
  while (over.length === 0) await soon(10);
  expect(complete).toBe(true);
  // Longer than one that does not read at all is waited for.
  expect(performance.now() - started).toBeGreaterThan(1_000);
  // What has left is in the system's buffers, and comes.
  while (read < 20 * MiB) await soon(10);
  socket.destroy();
});

test("what is not answered yet is not too slow", async () => {
  let cut = false;
  answer = (response, socket) => {
    pace.watch(response, socket);
    socket.once("close", () => {
      cut = true;
    });
    setTimeout(() => response.end("late"), 1_500);
  };
  const socket = await ask("/");
  const text = await new Promise((resolve) => socket.once("data", (chunk) => resolve(String(chunk))));
  expect(text).toContain("late");
  expect(cut).toBe(false);
  socket.destroy();
});

test("the end of an answer is told once, also to who asks too late, and leaves no listener", async () => {
  let told = 0;
  let ended: (() => void) | undefined;
  const end = new Promise<void>((resolve) => {
    ended = resolve;
  });
  let listeners = 0;
  answer = (response, socket) => {
    onceAnswered(response, socket, () => told++);
    const before = socket.listenerCount("close");
    for (let i = 0; i < 5; i++) onceAnswered(response, socket, () => told++);
    listeners = socket.listenerCount("close") - before;
    response.once("close", () => {
      onceAnswered(response, socket, () => told++);
      ended?.();
    });
    response.end();
  };
  const socket = await ask("/");
  await end;
  socket.destroy();
  await soon(20);
  expect(told).toBe(7);
  expect(listeners).toBe(0);
});

test("the server asks it of every route", async () => {
  const { app, listen, drain } = await buildServer({
    log: pino({ level: "silent" }),
    metrics: new Registry(),
    guardMetrics: async () => undefined,
    limits: { minBodyBytesPerSecond: 50_000, bodyGraceMs: 5_000, answerGraceMs: 400, maxConnections: 10 },
  });
  let over = false;
  app.get("/long", async (request, reply) => {
    request.raw.socket.once("close", () => {
      over = true;
    });
    return reply.send(Buffer.alloc(40 * MiB));
  });
  const url = new URL(await listen("127.0.0.1", 0));
  const socket = connect(Number(url.port), url.hostname);
  socket.on("error", () => undefined);
  socket.write("GET /long HTTP/1.1\r\nhost: x\r\n\r\n");
  while (!over) await soon(10);
  socket.destroy();
  await drain(0);
});
