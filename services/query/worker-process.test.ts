import { EventEmitter } from "node:events";
import { beforeEach, describe, expect, test, vi } from "vitest";
import type { Reply, Request } from "./protocol.js";
import { WorkerProcess } from "./worker-process.js";

/** A child process that is none; it bears this process's id, so that its memory can be looked at. */
class FakeChild extends EventEmitter {
  readonly pid = process.pid;
  readonly channel = { ref: () => undefined, unref: () => undefined };
  readonly sent: unknown[] = [];
  readonly killed: string[] = [];

  constructor(
    readonly args: readonly string[],
    readonly options: { readonly env: object; readonly stdio: readonly string[] },
  ) {
    super();
  }

  send(message: unknown): void {
    this.sent.push(message);
  }

  kill(signal: string): void {
    this.killed.push(signal);
    setImmediate(() => this.emit("exit", null, signal));
  }

  ref(): void {}
  unref(): void {}
  reply(reply: Reply): void {
    this.emit("message", reply);
  }
}

const children: FakeChild[] = [];
vi.mock("node:child_process", () => ({
  fork: (_: string, args: string[], options: FakeChild["options"]) => {
    const child = new FakeChild(args, options);
    children.push(child);
    return child;
  },
}));
vi.mock("node:os", async (original) => ({ ...(await original<object>()), setPriority: () => undefined }));

const PLENTY = 2 ** 50;
const request = { type: "run" } as Request;
const done: Reply = { type: "done", columns: [], rowCount: 0 };
let worker: WorkerProcess;
let child: FakeChild;
const start = (memoryBytes = PLENTY) => {
  worker = new WorkerProcess(memoryBytes);
  child = children.at(-1)!;
};
beforeEach(() => start());

const codeOf = async (answered: Promise<unknown>) =>
  answered.then(
    () => "answered",
    (error: { code: string }) => error.code,
  );

test("a worker is given nothing of the environment, no token, no path, and says nothing to the terminal", () => {
  expect(child.options.env).toEqual({ TZ: "UTC", UV_THREADPOOL_SIZE: "1" });
  expect(child.args).toEqual([JSON.stringify({ memoryBytes: PLENTY })]);
  expect(child.options.stdio).toEqual(["ignore", "ignore", "ignore", "ipc"]);
});

describe("a call", () => {
  test("gets rows, then its answer, and the process lives on", async () => {
    const rows: string[] = [];
    const answer = worker.call(request, 60_000, (text) => rows.push(text));
    child.reply({ type: "rows", text: "[1]" });
    child.reply(done);
    expect(await answer).toEqual(done);
    child.reply({ type: "rows", text: "of nobody" });
    expect(rows).toEqual(["[1]"]);
    expect([child.sent, child.killed, worker.alive]).toEqual([[request], [], true]);
  });

  test("that takes longer than it may ends with the process, whatever runs in it", async () => {
    expect(await codeOf(worker.call(request, 20))).toBe("TRB-QUERY-TIMEOUT");
    expect([child.killed, worker.alive]).toEqual([["SIGKILL"], false]);
    await worker.ended;
  });

  test.runIf(process.platform === "linux")(
    "whose process takes more memory than it may ends with it",
    async () => {
      // Less than this process has, with all that is granted on top.
      start(-320 * 1024 * 1024);
      expect(await codeOf(worker.call(request, 60_000))).toBe("TRB-QUERY-MEMORY");
    },
  );

  test.each<Reply>([
    { type: "failed", code: "TRB-QUERY-RUNTIME", broken: true },
    { type: "failed", code: "TRB-INTERNAL" },
  ])("that breaks the engine is the last of its process: %o", async (reply) => {
    const answer = worker.call(request, 60_000);
    child.reply(reply);
    expect(await answer).toEqual(reply);
    expect(worker.alive).toBe(false);
    expect(child.killed).toEqual(["SIGKILL"]);
  });

  test("that merely fails is not", async () => {
    const answer = worker.call(request, 60_000);
    child.reply({ type: "failed", code: "TRB-QUERY-RUNTIME" });
    expect(await answer).toMatchObject({ type: "failed" });
    expect(worker.alive).toBe(true);
  });

  test.each([
    ["SIGKILL", "TRB-QUERY-MEMORY"],
    ["SIGABRT", "TRB-QUERY-MEMORY"],
    ["SIGSEGV", "TRB-INTERNAL"],
  ])("of a process that ends by %s fails with %s", async (signal, code) => {
    const answer = codeOf(worker.call(request, 60_000));
    child.emit("exit", null, signal);
    expect(await answer).toBe(code);
    expect(await codeOf(Promise.resolve().then(() => worker.call(request, 60_000)))).toBe(code);
  });

  test("that is to yield is answered so, also when it had not begun", async () => {
    const answer = worker.call(request, 60_000);
    worker.end("yielded");
    expect(await answer).toEqual({ type: "yielded" });
    expect(await worker.call(request, 60_000)).toEqual({ type: "yielded" });
  });
});
