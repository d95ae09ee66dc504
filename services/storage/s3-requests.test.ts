import { describe, expect, test } from "vitest";
import { Pace, Paces } from "./pace.js";
import { failureOf, type S3Outcome, S3Requests } from "./s3-requests.js";

const answer = (name: string, httpStatusCode?: number) =>
  Object.assign(new Error("the server's words, with lakes/acme in them"), {
    name,
    ...(httpStatusCode === undefined ? {} : { $metadata: { httpStatusCode } }),
  });
const fault = (code: string) => Object.assign(new Error("socket of acme"), { code });

describe("what an error means", () => {
  test.each([
    [answer("NoSuchKey", 404), "absent"],
    [answer("NoSuchBucket", 404), "refused"],
    [answer("PreconditionFailed", 412), "exists"],
    [answer("ConditionalRequestConflict", 409), "again"],
    [answer("SlowDown", 503), "slow-down"],
    [answer("ServiceUnavailable", 503), "slow-down"],
    [answer("TooManyRequestsException", 429), "slow-down"],
    [answer("InternalError", 500), "again"],
    [answer("BadGateway", 502), "again"],
    [answer("RequestTimeout", 400), "again"],
    [answer("RequestTimeTooSkewed", 403), "again"],
    [answer("AccessDenied", 403), "refused"],
    [answer("InvalidRange", 416), "refused"],
    [answer("TimeoutError"), "again"],
    [fault("ECONNRESET"), "again"],
    [fault("EPIPE"), "again"],
    [fault("ECONNREFUSED"), "again"],
    [fault("ENOSPC"), "refused"],
    [answer("CredentialsProviderError"), "refused"],
    [new TypeError("ours"), "refused"],
  ] as const)("%s: %s", (error, kind) => {
    expect(failureOf(error).kind).toBe(kind);
  });
});

describe("requests", () => {
  const make = (timeoutMs = 1_000) => {
    const outcomes: S3Outcome[] = [];
    const requests = new S3Requests({ timeoutMs, onRequest: (_, outcome) => outcomes.push(outcome) });
    return { requests, outcomes };
  };

  test("are tried again after a pause, and told of without the server's words", async () => {
    const { requests, outcomes } = make();
    const errors = [fault("ECONNRESET"), answer("SlowDown", 503)];
    const done = await requests.send("get", "t/k", async ({ number }) => {
      const error = errors.shift();
      if (error !== undefined) throw error;
      return number;
    });
    expect(done).toBe(3);
    expect(outcomes).toEqual(["retried", "retried", "ok"]);
    const failing = requests.send("put", "t/k", () => Promise.reject(answer("InternalError", 500)));
    await expect(failing).rejects.toMatchObject({
      code: "TRB-STORE-FAILED",
      message: "put: InternalError",
    });
    expect(outcomes.slice(3)).toEqual(["retried", "retried", "retried", "failed"]);
  });

  test("are not tried again when that is of no use, and an expected answer is none", async () => {
    const { requests, outcomes } = make();
    const denied = requests.send("get", "t/k", () => Promise.reject(answer("AccessDenied", 403)));
    await expect(denied).rejects.toMatchObject({ message: "get: AccessDenied" });
    const absent = requests.send<number | undefined>(
      "get",
      "t/k",
      () => Promise.reject(answer("NoSuchKey", 404)),
      ({ kind }) => (kind === "absent" ? { value: undefined } : undefined),
    );
    expect(await absent).toBeUndefined();
    expect(outcomes).toEqual(["failed", "absent"]);
  });

  test("have their time, and more when a body is known to be long", async () => {
    const { requests } = make(20);
    const slow = (allowed: number) =>
      requests.send("get", "t/k", ({ signal, allow, number }) => {
        if (number > 1) return Promise.resolve("given up");
        allow(allowed);
        return new Promise<string>((resolve, reject) => {
          signal.addEventListener("abort", () => reject(answer("AbortError")));
          setTimeout(resolve, 60, "waited for");
        });
      });
    expect(await slow(20)).toBe("given up");
    expect(await slow(requests.timeFor(256 * 200))).toBe("waited for");
  });
});

describe("pace", () => {
  const slow = new Error("slow");
  const isSlow = (error: unknown) => error === slow;

  test("halves once for all that was under way, and widens one by one", async () => {
    const pace = new Pace();
    const [width] = [pace.width];
    const fail = () => new Promise<void>((_, reject) => setTimeout(reject, 5, slow));
    await Promise.allSettled(Array.from({ length: 10 }, () => pace.run(fail, isSlow)));
    expect(pace.width).toBe(width / 2);
    for (let i = 0; i < 12; i++) await pace.run(fail, isSlow).catch(() => undefined);
    expect(pace.width).toBe(1);
    const widths: number[] = [];
    for (let i = 0; i < 10; i++) {
      await pace.run(async () => undefined, isSlow);
      widths.push(pace.width);
    }
    expect(widths.at(-1)).toBeGreaterThan(2);
    expect(widths.at(-1)).toBeLessThan(8);
  });

  test("no more run than it is wide, all get their turn, and other faults do not narrow it", async () => {
    const pace = new Pace();
    while (pace.width > 3) await pace.run(() => Promise.reject(slow), isSlow).catch(() => undefined);
    const { width } = pace;
    let [running, most, done] = [0, 0, 0];
    const work = async () => {
      most = Math.max(most, ++running - (pace.width - width));
      await new Promise((resolve) => setTimeout(resolve, 1));
      running--;
      if (done++ % 7 === 0) throw new Error("another fault");
    };
    await Promise.allSettled(Array.from({ length: 100 }, () => pace.run(work, isSlow)));
    expect(done).toBe(100);
    expect(most).toBeLessThanOrEqual(width);
    expect(pace.width).toBeGreaterThan(width);
  });

  test("one prefix's does not slow another's, and is forgotten once it is well", async () => {
    const paces = new Paces();
    const whole = paces.width("b/");
    await paces.run("a/", () => Promise.reject(slow), isSlow).catch(() => undefined);
    expect([paces.width("a/"), paces.width("b/")]).toEqual([whole / 2, whole]);
    for (let i = 0; i < 10_000 && paces.width("a/") < whole; i++)
      await paces.run("a/", async () => undefined, isSlow);
    expect(paces.width("a/")).toBe(whole);
  });
});
