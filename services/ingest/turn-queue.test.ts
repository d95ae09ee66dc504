import { describe, expect, test } from "vitest";
import { type Outcome, TurnQueue } from "./turn-queue.js";

/** An owner that always wants more, and says so in `order`. */
const greedy =
  (order: string[], name: string, turns: number): (() => Promise<Outcome>) =>
  async () => {
    order.push(name);
    return --turns > 0 ? "more" : "done";
  };

describe("turns", () => {
  test("one who always wants more never keeps another waiting for longer than one job", async () => {
    const queue = new TurnQueue();
    const order: string[] = [];
    queue.offer("hot", greedy(order, "hot", 6));
    queue.offer("warm", greedy(order, "warm", 3));
    queue.offer("cold", greedy(order, "cold", 1));
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(order).toEqual(["hot", "warm", "cold", "hot", "warm", "hot", "warm", "hot", "hot", "hot"]);
  });

  test("jobs run one at a time, an owner stands in the queue once, and close waits for the job that runs", async () => {
    const queue = new TurnQueue();
    let running = 0;
    let ran = 0;
    let ended = false;
    const job = async (): Promise<Outcome> => {
      expect(++running).toBe(1);
      await new Promise((resolve) => setTimeout(resolve, 5));
      running--;
      ran++;
      ended = true;
      return "done";
    };
    for (let i = 0; i < 5; i++) queue.offer("a", job);
    queue.offer("b", job);
    await queue.close();
    expect(ended).toBe(true);
    expect(ran).toBe(1);
    queue.offer("c", job);
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(ran).toBe(1);
  });

  test("one that fails gets growing pauses, and the others its turns", async () => {
    let now = 0;
    const queue = new TurnQueue(() => now);
    const order: string[] = [];
    const fails = async (): Promise<Outcome> => {
      order.push("fails");
      throw new Error("no");
    };
    const settle = () => new Promise((resolve) => setTimeout(resolve, 5));
    for (let step = 0; step < 40; step++) {
      queue.offer("fails", fails);
      queue.offer("works", greedy(order, "works", 1));
      await settle();
      now += 100;
    }
    // Four seconds hold four pauses of at least 188, 375, 750 and 1500 ms.
    expect(order.filter((name) => name === "fails").length).toBeLessThanOrEqual(6);
    expect(order.filter((name) => name === "works").length).toBe(40);
  });
});
