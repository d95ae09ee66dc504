import { EventEmitter } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { BodyPace } from "./body-pace.js";

/** Bytes a second, and milliseconds of credit for them. */
const RATE = 1_000;
const GRACE_MS = 1_000;

let pace: BodyPace;
beforeEach(() => {
  vi.useFakeTimers();
  pace = new BodyPace({ minBodyBytesPerSecond: RATE, bodyGraceMs: GRACE_MS });
});
afterEach(() => {
  pace.stop();
  vi.useRealTimers();
});

/** A body under way: what has come of it, whether somebody reads it, and what its reader was told. */
function open(headers: Record<string, string> = { "content-length": "1000000" }) {
  const socket = { bytesRead: 0, destroy: vi.fn() };
  const request = Object.assign(new EventEmitter(), {
    headers,
    socket,
    complete: false,
    readableFlowing: true as boolean | null,
  });
  const told: string[] = [];
  // Again and again, until its reader has ended the request.
  request.on("error", ({ code }: { code: string }) => {
    if (!told.includes(code)) told.push(code);
  });
  pace.watch(request as unknown as IncomingMessage, { headersSent: false } as ServerResponse);
  return { request, socket, told };
}
const pass = (ms: number) => vi.advanceTimersByTime(ms);

test("a body that stops coming is told of after its grace, not before", () => {
  const { told } = open();
  pass(GRACE_MS - 100);
  expect(told).toEqual([]);
  pass(600);
  expect(told).toEqual(["TRB-REQ-TOO-SLOW"]);
});

test("one in chunks as well; without a body there is nothing to wait for", () => {
  const chunked = open({ "transfer-encoding": "chunked" });
  const none = open({});
  pass(2 * GRACE_MS);
  expect([chunked.told.length, none.told.length]).toEqual([1, 0]);
});

test("what came early buys no more than the grace", () => {
  const { socket, told } = open();
  socket.bytesRead = 100 * RATE;
  pass(500);
  expect(told).toEqual([]);
  pass(1_500);
  expect(told).toEqual(["TRB-REQ-TOO-SLOW"]);
});

test("a body that keeps the pace goes on for ever, and so does one that nobody here reads", () => {
  const steady = open();
  const unread = open();
  unread.request.readableFlowing = false;
  for (let second = 0; second < 60; second++) {
    steady.socket.bytesRead += RATE;
    pass(1_000);
  }
  expect([steady.told, unread.told]).toEqual([[], []]);
  unread.request.readableFlowing = true;
  pass(2 * GRACE_MS);
  expect(unread.told).toEqual(["TRB-REQ-TOO-SLOW"]);
});

test("time in which this process did not run counts against nobody", () => {
  const { told } = open();
  vi.setSystemTime(Date.now() + 60_000);
  const now = performance.now();
  const clock = vi.spyOn(performance, "now").mockImplementation(() => now + 60_000);
  vi.advanceTimersToNextTimer();
  clock.mockRestore();
  expect(told).toEqual([]);
});

test("many that fall behind together are told a few in each turn of the event loop, and all in the end", () => {
  const bodies = Array.from({ length: 50 }, () => open());
  const toldNow = () => bodies.filter(({ told }) => told.length > 0).length;
  let most = 0;
  for (let turns = 0; toldNow() < 50 && turns < 1_000; turns++) {
    const before = toldNow();
    vi.advanceTimersToNextTimer();
    most = Math.max(most, toldNow() - before);
  }
  expect(toldNow()).toBe(50);
  expect(most).toBeLessThan(10);
});

test("where nobody listens any more, the connection is cut", () => {
  const { request, socket, told } = open();
  request.removeAllListeners("error");
  pass(3 * GRACE_MS);
  expect(told).toEqual([]);
  expect(socket.destroy).toHaveBeenCalled();
});
