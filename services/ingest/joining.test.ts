import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { MemoryReader } from "../../test/support/memory-reader.js";
import type { StreamConsumer } from "../stream/change-stream.js";
import { joinedUnlessStopped } from "./joining.js";

const consumer = async () => new MemoryReader("s").consume("c");

test("a consumer that is let in is what it resolves to, also within the patience after a stop", async () => {
  const stopping = new AbortController();
  const one = await consumer();
  expect(await joinedUnlessStopped(Promise.resolve(one), stopping.signal, 0)).toBe(one);
  const late = sleep(20).then(() => one);
  stopping.abort();
  expect(await joinedUnlessStopped(late, stopping.signal, 60_000)).toBe(one);
});

test("a stream that lets nobody in is not waited for after a stop; who is let in later leaves again", async () => {
  const stopping = new AbortController();
  let enter: (one: StreamConsumer) => void = () => undefined;
  const joining = new Promise<StreamConsumer>((resolve) => {
    enter = resolve;
  });
  const joined = joinedUnlessStopped(joining, stopping.signal, 10);
  stopping.abort();
  expect(await joined).toBeUndefined();
  const one = await consumer();
  let closed = false;
  const close = async () => {
    closed = true;
  };
  enter(Object.assign(one, { close }));
  await expect.poll(() => closed).toBe(true);
});

test("who is let in late and cannot leave in good order harms nobody", async () => {
  const stopping = new AbortController();
  stopping.abort();
  let closed = false;
  const close = async () => {
    closed = true;
    throw new Error("the stream is away");
  };
  const late = sleep(30).then(async () => Object.assign(await consumer(), { close }));
  // A rejection that nobody handles fails the run.
  expect(await joinedUnlessStopped(late, stopping.signal, 5)).toBeUndefined();
  await expect.poll(() => closed).toBe(true);
  await sleep(10);
});

test("a stream that cannot be joined is told of", async () => {
  const failed = Promise.reject(new Error("no"));
  await expect(joinedUnlessStopped(failed, new AbortController().signal, 10)).rejects.toThrow("no");
});
