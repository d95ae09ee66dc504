import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { S3Store } from "../../services/storage/s3-store.js";
import { startS3 } from "../servers/s3.js";
import { type HttpFault, HttpFaultProxy, type ProxiedRequest, slowDown } from "../support/fault-proxy.js";
import { newBucket, S3Fixture } from "../support/s3-lake.js";

let server: Awaited<ReturnType<typeof startS3>>;
let proxy: HttpFaultProxy;
let fixture: S3Fixture;
let store: S3Store;
/** Not through the proxy. */
let truth: S3Store;
const outcomes: string[] = [];

beforeAll(async () => {
  server = await startS3();
}, 900_000);
afterAll(() => server?.stop());
beforeEach(async () => {
  proxy = await HttpFaultProxy.start(server.endpoint);
  const bucket = await newBucket(server.endpoint);
  fixture = new S3Fixture(proxy.endpoint, bucket);
  outcomes.length = 0;
  store = await fixture.open({
    timeoutMs: 400,
    onRequest: (operation, outcome) => outcomes.push(`${operation} ${outcome}`),
  });
  truth = await fixture.open({ endpoint: server.endpoint });
});
afterEach(async () => {
  await proxy.settled();
  fixture.dispose();
  await proxy.stop();
});

/** The faults meet the requests of a method one after the other. */
const faults = (method: string, ...list: (HttpFault | undefined)[]) => {
  proxy.fault = (request: ProxiedRequest) => (request.method === method ? list.shift() : undefined);
};
const text = async (key: string) => (await truth.get(key))?.toString();

describe("a put if absent whose answer is lost", () => {
  test.each<HttpFault>([
    { kind: "reset-after" },
    { kind: "silent-after" },
    { kind: "answer-after", status: 500 },
    { kind: "answer-after", status: 503 },
    { kind: "late", ms: 50 },
  ])("is settled by reading back when it has happened: %j", async (fault) => {
    faults("PUT", fault);
    expect(await store.putIfAbsent("log/0.json", Buffer.from("mine"))).toBe("created");
    expect(await text("log/0.json")).toBe("mine");
    expect(await truth.putIfAbsent("log/0.json", Buffer.from("other"))).toBe("exists");
  });

  test.each<HttpFault>([{ kind: "reset-before" }, { kind: "answer", status: 500 }, slowDown])(
    "is made again when it has not: %j",
    async (fault) => {
      faults("PUT", fault);
      expect(await store.putIfAbsent("log/0.json", Buffer.from("mine"))).toBe("created");
      expect(outcomes).toEqual(["put retried", "put ok"]);
    },
  );

  test("is told from another's, byte for byte the same as it may be", async () => {
    for (const fault of [{ kind: "reset-before" }, { kind: "reset-after" }] satisfies HttpFault[]) {
      const key = `log/${fault.kind}.json`;
      await truth.putIfAbsent(key, Buffer.from("{}"));
      faults("PUT", fault);
      expect(await store.putIfAbsent(key, Buffer.from("{}"))).toBe("exists");
    }
  });

  test("that arrives after all tries were given up rejects, and comes about once", async () => {
    faults("PUT", ...Array.from({ length: 4 }, (): HttpFault => ({ kind: "late", ms: 4_000 })));
    await expect(store.putIfAbsent("log/0.json", Buffer.from("late"))).rejects.toMatchObject({
      code: "TRB-STORE-FAILED",
      retryable: true,
    });
    expect(await text("log/0.json")).toBeUndefined();
    await proxy.settled();
    expect(await text("log/0.json")).toBe("late");
    expect(await store.putIfAbsent("log/0.json", Buffer.from("next"))).toBe("exists");
  });

  test("does not overwrite who came in between", async () => {
    faults("PUT", { kind: "late", ms: 300 });
    const mine = store.putIfAbsent("log/0.json", Buffer.from("mine"));
    await sleep(20);
    expect(await truth.putIfAbsent("log/0.json", Buffer.from("theirs"))).toBe("created");
    expect(await mine).toBe("exists");
    await proxy.settled();
    expect(await text("log/0.json")).toBe("theirs");
  });

  test("one winner of 20 while every third answer is lost, and nobody is told wrong", async () => {
    proxy.fault = ({ method, number }) =>
      method === "PUT" && number % 3 === 0
        ? { kind: number % 2 === 0 ? "reset-after" : "reset-before" }
        : undefined;
    for (let round = 0; round < 8; round++) {
      const key = `race/${round}`;
      const told = await Promise.all(
        Array.from({ length: 20 }, (_, i) =>
          store.putIfAbsent(key, Buffer.from(`by ${i}`)).catch(() => "failed" as const),
        ),
      );
      const winners = told.flatMap((outcome, i) => (outcome === "created" ? [i] : []));
      expect(winners.length).toBeLessThanOrEqual(1);
      const stands = await text(key);
      if (winners.length === 1) expect(stands).toBe(`by ${winners[0]}`);
      // Else it is one of those who do not know.
      else expect(told[Number(stands!.slice(3))]).toBe("failed");
    }
  });
});

describe("reads", () => {
  test("that break off, stall, are refused or come damaged are made again, and a half is never a whole", async () => {
    const bytes = Buffer.alloc(300_000, "abc");
    await truth.put("t/f", bytes);
    const list: HttpFault[] = [
      { kind: "cut", bytes: 1_000 },
      { kind: "stall", bytes: 1_000 },
      { kind: "corrupt" },
      { kind: "answer", status: 500 },
      slowDown,
      { kind: "reset-before" },
      { kind: "silent-after" },
    ];
    for (const fault of list) {
      faults("GET", fault);
      expect((await store.get("t/f"))?.equals(bytes), fault.kind).toBe(true);
      if (fault.kind !== "corrupt") {
        // Of a part there is no checksum.
        faults("GET", fault);
        expect((await store.getRange("t/f", 5, 200_000)).equals(bytes.subarray(5, 200_000))).toBe(true);
      }
      await truth.delete(["t/f"]);
      await truth.put("t/f", bytes);
      store.cache.drop(["t/f"]);
      truth.cache.drop(["t/f"]);
      faults("GET", fault);
      await store.withLocal(["t/f"], async ([path]) =>
        expect((await readFile(path!)).equals(bytes), fault.kind).toBe(true),
      );
    }
    const left = await readdir(join(fixture.folder, "cache"), { recursive: true });
    expect(left.filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });

  test("a listing goes on where a page failed, and a delete is made again", async () => {
    for (const key of ["a", "b", "c"]) await truth.put(key, Buffer.from("x"));
    faults("GET", slowDown);
    const keys: string[] = [];
    for await (const { key } of store.list("")) keys.push(key);
    expect(keys).toEqual(["a", "b", "c"]);
    faults("POST", { kind: "reset-after" });
    await store.delete(keys);
    expect(await text("a")).toBeUndefined();
  });
});

describe("a store that is away", () => {
  test("fails what is asked within seconds, and all goes well once it is back", async () => {
    await truth.put("k", Buffer.from("x"));
    const back = proxy.outage();
    const failed = { code: "TRB-STORE-FAILED", retryable: true };
    await Promise.all([
      expect(store.get("k")).rejects.toMatchObject(failed),
      expect(store.put("l", Buffer.from("x"))).rejects.toMatchObject(failed),
      expect(store.putIfAbsent("m", Buffer.from("x"))).rejects.toMatchObject(failed),
      expect(store.withLocal(["k"], async ([path]) => existsSync(path!))).rejects.toMatchObject(failed),
      expect(store.list("").next()).rejects.toMatchObject(failed),
    ]);
    back();
    expect((await store.get("k"))?.toString()).toBe("x");
    expect(await store.withLocal(["k"], ([path]) => readFile(path!, "utf8"))).toBe("x");
    expect(await store.putIfAbsent("m", Buffer.from("x"))).toBe("created");
  });

  test("that asks to slow down gets everything in the end", async () => {
    const patient = await fixture.open({
      onRequest: (operation, outcome) => outcomes.push(`${operation} ${outcome}`),
    });
    proxy.fault = ({ method, number }) =>
      method === "PUT" && number % 4 === 0 && number < 60 ? slowDown : undefined;
    await Promise.all(Array.from({ length: 300 }, (_, i) => patient.put(`t/${i}`, Buffer.from("x"))));
    let count = 0;
    for await (const _ of truth.list("t/")) count++;
    expect(count).toBe(300);
    expect(outcomes.filter((outcome) => outcome === "put failed")).toEqual([]);
    expect(outcomes).toContain("put retried");
  });
});

test("names and messages of the server do not come out, keys and tenants neither", async () => {
  const error = await store.getRange("t=acme/secret", 0, 1).catch((thrown: unknown) => thrown);
  expect(String(error)).toBe("TributaryError: range: NoSuchKey");
  const nowhere = await fixture.open({ bucket: "no-such-bucket-there-is" });
  await expect(nowhere.get("t=acme/secret")).rejects.toMatchObject({ message: "get: NoSuchBucket" });
});
