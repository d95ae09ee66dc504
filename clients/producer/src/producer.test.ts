import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type Behaviour, FakeBus } from "../test/fake-bus.js";
import { ProducerError } from "./errors.js";
import type { ChangeEvent } from "./event.js";
import type { ProducerOptions } from "./options.js";
import { Producer } from "./producer.js";

let bus: FakeBus;
let producer: Producer;
beforeEach(async () => {
  bus = await FakeBus.start();
});
afterEach(async () => {
  await producer.close({ withinMs: 0 });
  await bus.stop();
});

const make = (options: Partial<ProducerOptions> = {}): Producer => {
  producer = new Producer({ url: bus.url, token: "t", lingerMs: 15, ...options });
  return producer;
};
const event = (entityId: string, version = 1, payload: Uint8Array = Buffer.from("x")): ChangeEvent => ({
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId,
  operation: "created",
  version,
  payload,
});
const many = (count: number, payload?: Uint8Array) =>
  Array.from({ length: count }, (_, i) => event(`e${i}`, 1, payload));
const sendAll = (events: readonly ChangeEvent[]) => Promise.all(events.map((each) => producer.send(each)));
/** What each request meets, in turn; the rest is taken. */
const script = (...behaviours: Behaviour[]) => {
  bus.behave = ({ number }) => behaviours[number - 1] ?? { kind: "take" };
};
const failureOf = (promise: Promise<unknown>): Promise<ProducerError> =>
  promise.then(
    () => {
      throw new Error("was accepted");
    },
    (error: unknown) => {
      expect(error).toBeInstanceOf(ProducerError);
      return error as ProducerError;
    },
  );

describe("batches", () => {
  it("go by count, at once", async () => {
    make({ maxBatchEvents: 4, lingerMs: 60_000, maxInFlight: 1 });
    await sendAll(many(12));
    expect(bus.requests.map(({ events }) => events.length)).toEqual([4, 4, 4]);
  });

  it("go by bytes; an event that is larger goes alone", async () => {
    make({ maxBatchBytes: 1000, lingerMs: 60_000, maxInFlight: 1 });
    const sizes = [300, 300, 300, 5000, 300, 300, 300];
    const sent = sendAll(sizes.map((size, i) => event(`e${i}`, 1, Buffer.alloc(size))));
    await producer.flush();
    await sent;
    expect(bus.requests.map(({ events }) => events.length)).toEqual([2, 1, 1, 2, 1]);
  });

  it("go when the first has lingered", async () => {
    make({ lingerMs: 20 });
    const started = performance.now();
    await sendAll(many(3));
    expect(performance.now() - started).toBeGreaterThanOrEqual(19);
    expect(bus.requests.map(({ events }) => events.length)).toEqual([3]);
  });

  it("go at once on flush, which waits for what was sent before it alone", async () => {
    make({ lingerMs: 60_000 });
    const sent = sendAll(many(3));
    await producer.flush();
    await sent;
    expect(producer.pending).toEqual({ events: 0, bytes: 0 });
    void producer.send(event("later")).catch(() => undefined);
    expect(bus.requests).toHaveLength(1);
  });

  it("are no more at a time than asked for, and keep the order of what was sent", async () => {
    bus.behave = async () => {
      await new Promise((go) => setTimeout(go, 3));
      return { kind: "take" };
    };
    make({ maxBatchEvents: 2, maxInFlight: 3 });
    const receipts = await sendAll(many(20));
    expect(bus.mostInFlight).toBe(3);
    for (const { events } of bus.requests) {
      expect(Number(events[0]!.entityId.slice(1))).toBeLessThan(Number(events[1]!.entityId.slice(1)));
    }
    expect(new Set(receipts.map(({ position }) => position)).size).toBe(20);
  });

  it("are packed when asked, where it is worth it", async () => {
    make({ gzip: true });
    await sendAll(many(50, Buffer.alloc(100)));
    await producer.send(event("small"));
    const [large, small] = bus.requests;
    expect(large!.headers["content-encoding"]).toBe("gzip");
    expect(large!.bytes).toBeLessThan(3000);
    expect(small!.headers["content-encoding"]).toBeUndefined();
    expect(bus.taken).toHaveLength(51);
  });

  it("are halved as long as the bus finds them too large; the event that alone is, is refused", async () => {
    bus.behave = ({ events }) =>
      events.length > 3 || events.some(({ entityId }) => entityId === "e5")
        ? { kind: "status", status: 413, code: "TRB-REQ-TOO-LARGE" }
        : { kind: "take" };
    make();
    const settled = await Promise.allSettled(many(16).map((each) => producer.send(each)));
    expect(settled.map(({ status }) => status === "fulfilled")).toEqual(settled.map((_, i) => i !== 5));
    expect((settled[5] as PromiseRejectedResult).reason).toMatchObject({ code: "TRB-REQ-TOO-LARGE" });
    expect(bus.taken).toHaveLength(15);
  });

  it("an event that is given up while its batch turns out too large holds up neither its entity nor room", async () => {
    let answer: (behaviour: Behaviour) => void = () => undefined;
    const tooLarge = new Promise<Behaviour>((resolve) => {
      answer = resolve;
    });
    bus.behave = ({ number }) => (number === 1 ? tooLarge : { kind: "take" });
    make({ deadlineMs: 200 });
    const sent = [failureOf(producer.send(event("a", 1))), failureOf(producer.send(event("b", 1)))];
    for (const { code } of await Promise.all(sent)) expect(code).toBe("TRB-PRODUCER-DEADLINE");
    const next = producer.send(event("a", 2));
    answer({ kind: "status", status: 413, code: "TRB-REQ-TOO-LARGE" });
    await next;
    expect(bus.taken.map(({ version }) => version)).toEqual([2]);
    expect(producer.pending).toEqual({ events: 0, bytes: 0 });
  });
});

describe("order", () => {
  it("an event leaves only when every earlier one of its entity is settled", async () => {
    make({ maxBatchEvents: 10, maxInFlight: 4 });
    await Promise.all(
      [1, 2, 3, 4].flatMap((version) => ["a", "b"].map((id) => producer.send(event(id, version)))),
    );
    for (const { events } of bus.requests) {
      expect(new Set(events.map(({ entityId }) => entityId)).size).toBe(events.length);
    }
    const ofA = bus.taken.filter(({ entityId }) => entityId === "a");
    expect(ofA.map(({ version }) => version)).toEqual([1, 2, 3, 4]);
  });

  it("is kept when the older one is refused for now in the middle of a batch, and nobody else waits for it", async () => {
    let refusals = 3;
    bus.behave = () => ({
      kind: "take",
      refuse: ({ entityId }) =>
        entityId === "b" && refusals-- > 0 ? { code: "TRB-BUS-TABLE-HELD", retryable: true } : undefined,
    });
    make();
    const others = sendAll(
      [event("a"), event("b", 1), event("b", 2), event("c")].filter((e) => e.entityId !== "b"),
    );
    const held = Promise.all([producer.send(event("b", 1)), producer.send(event("b", 2))]);
    await others;
    await held;
    expect(bus.taken.filter(({ entityId }) => entityId === "b").map(({ version }) => version)).toEqual([
      1, 2,
    ]);
    expect(bus.taken.slice(0, 2).map(({ entityId }) => entityId)).toEqual(["a", "c"]);
    expect(bus.taken).toHaveLength(4);
  });

  it("goes on behind an event that is refused for good", async () => {
    bus.behave = () => ({
      kind: "take",
      refuse: ({ version }) =>
        version === 1 ? { code: "TRB-EVENT-PAYLOAD-DECODE", retryable: false } : undefined,
    });
    make();
    const [first, second] = await Promise.allSettled([
      producer.send(event("a", 1)),
      producer.send(event("a", 2)),
    ]);
    expect(first).toMatchObject({
      reason: { code: "TRB-EVENT-PAYLOAD-DECODE", message: "words", refused: "event", mayHaveLanded: false },
    });
    expect(second.status).toBe("fulfilled");
  });
});

describe("a bus that is not well", () => {
  it("is given the time it asks for, by all", async () => {
    script({ kind: "status", status: 429, code: "TRB-BUS-BUSY", headers: { "retry-after": "0.2" } });
    make({ maxBatchEvents: 1, maxInFlight: 4 });
    const started = performance.now();
    const first = producer.send(event("a"));
    await new Promise((go) => setTimeout(go, 50));
    const second = producer.send(event("b"));
    await Promise.all([first, second]);
    expect(performance.now() - started).toBeGreaterThanOrEqual(195);
    expect(bus.requests).toHaveLength(3);
    expect(bus.taken).toHaveLength(2);
  });

  it.each<[string, Behaviour, number]>([
    ["503", { kind: "status", status: 503, code: "TRB-BUS-STREAM-DOWN" }, 1],
    ["a gateway's 502", { kind: "status", status: 502 }, 1],
    ["a cut before it took anything", { kind: "cut", when: "before" }, 1],
    ["a cut after it took everything", { kind: "cut", when: "after" }, 2],
    ["half an answer", { kind: "cut", when: "half" }, 2],
    ["silence", { kind: "silence" }, 2],
  ])("after %s the same events are sent again", async (_, behaviour, times) => {
    script(behaviour);
    make({ silenceMs: 300 });
    await sendAll(many(3));
    expect(bus.requests).toHaveLength(2);
    expect(bus.taken).toHaveLength(3 * times);
  });

  it("is asked by one request at a time until it is well again", async () => {
    bus.behave = ({ number }) =>
      number <= 6 ? { kind: "status", status: 503, code: "TRB-BUS-DRAINING" } : { kind: "take" };
    make({ maxBatchEvents: 1, maxInFlight: 4 });
    await sendAll(many(8));
    const [first, ...later] = bus.requests.slice(0, 7).map(({ events }) => events[0]!.entityId);
    expect(first).toBe("e0");
    expect(later.slice(3).every((id) => id === later[3])).toBe(true);
  });

  it("that answers with nonsense is not believed", async () => {
    script({ kind: "status", status: 200 });
    make();
    await producer.send(event("a"));
    expect(bus.requests).toHaveLength(2);
  });

  it("is given up at the deadline, which says what stood in the way and whether the event may be there", async () => {
    script({ kind: "status", status: 429, code: "TRB-BUS-BUSY", headers: { "retry-after": "30" } });
    make({ deadlineMs: 600 });
    const busy = await failureOf(producer.send(event("a")));
    expect(busy).toMatchObject({ code: "TRB-PRODUCER-DEADLINE", retryable: true, mayHaveLanded: false });
    expect(busy.cause).toMatchObject({ code: "TRB-BUS-BUSY" });
    await producer.close();
    bus.behave = () => ({ kind: "silence" });
    make({ deadlineMs: 120, silenceMs: 5_000 });
    const [flying, behind] = await Promise.all(
      [1, 2].map((version) => failureOf(producer.send(event("a", version)))),
    );
    expect(flying).toMatchObject({ code: "TRB-PRODUCER-DEADLINE", mayHaveLanded: true });
    expect(behind).toMatchObject({ code: "TRB-PRODUCER-DEADLINE", mayHaveLanded: false });
    expect(producer.pending.events).toBe(0);
  });

  it.each([
    ["TRB-BUS-STREAM-DOWN", true],
    ["TRB-INTERNAL", true],
    ["TRB-BUS-BUSY", false],
  ])("that says %s of one event has left it in doubt: %s", async (code, mayHaveLanded) => {
    bus.behave = () => ({ kind: "take", refuse: () => ({ code, retryable: true }) });
    make({ deadlineMs: 150 });
    const error = await failureOf(producer.send(event("a")));
    expect(error).toMatchObject({ code: "TRB-PRODUCER-DEADLINE", mayHaveLanded, cause: { mayHaveLanded } });
  });

  it("that cut a kept connection leaves the events in doubt, whatever it says when they come again", async () => {
    const busy: Behaviour = {
      kind: "status",
      status: 429,
      code: "TRB-BUS-BUSY",
      headers: { "retry-after": "30" },
    };
    script({ kind: "take" }, { kind: "cut", when: "after" }, busy);
    make({ deadlineMs: 500 });
    await producer.send(event("a"));
    const error = await failureOf(producer.send(event("b")));
    expect(bus.taken.map(({ entityId }) => entityId)).toEqual(["a", "b"]);
    expect(error).toMatchObject({ code: "TRB-PRODUCER-DEADLINE", mayHaveLanded: true });
  });

  it("that nobody can reach is asked until the deadline; nothing can have landed", async () => {
    // It ends in a pause: what is refused takes no time, and the pauses double.
    make({ deadlineMs: 1_000 });
    await bus.stop();
    const error = await failureOf(producer.send(event("a")));
    expect(error).toMatchObject({ code: "TRB-PRODUCER-DEADLINE", mayHaveLanded: false });
    expect(error.message).toContain("nothing listens there");
    bus = await FakeBus.start();
  });

  it("refuses the request as a whole: each event learns why", async () => {
    script({ kind: "status", status: 403, code: "TRB-AUTH-ROLE" });
    make();
    const errors = await Promise.all(many(2).map((each) => failureOf(producer.send(each))));
    expect(errors).toMatchObject([{ code: "TRB-AUTH-ROLE" }, { refused: "request", retryable: false }]);
    expect(bus.requests).toHaveLength(1);
  });
});

describe("the token", () => {
  const refuseOld = () => {
    bus.behave = ({ headers }) =>
      headers.authorization === "Bearer token 1"
        ? { kind: "status", status: 401, code: "TRB-AUTH-EXPIRED" }
        : { kind: "take" };
  };

  it("is fetched once, and once more by all when it is no longer taken", async () => {
    refuseOld();
    let fetched = 0;
    make({ token: async () => `token ${++fetched}`, maxBatchEvents: 1, maxInFlight: 4 });
    await sendAll(many(4));
    expect(fetched).toBe(2);
    expect(bus.taken).toHaveLength(4);
  });

  it("that is not taken when fresh refuses the events, and the next ones fetch another", async () => {
    bus.behave = ({ number }) =>
      number <= 2 ? { kind: "status", status: 401, code: "TRB-AUTH-INVALID" } : { kind: "take" };
    let fetched = 0;
    make({ token: () => `token ${++fetched}` });
    expect(await failureOf(producer.send(event("a")))).toMatchObject({ code: "TRB-AUTH-INVALID" });
    await producer.send(event("b"));
    expect(bus.requests).toHaveLength(3);
  });

  it("whose provider fails is asked for again", async () => {
    let asked = 0;
    const token = () => {
      if (++asked < 3) throw new Error("vault is sealed");
      return "t";
    };
    make({ token });
    await producer.send(event("a"));
    expect(asked).toBe(3);
  });

  it("given as text is not sent twice when it is not taken", async () => {
    script({ kind: "status", status: 401, code: "TRB-AUTH-EXPIRED" });
    make();
    expect(await failureOf(producer.send(event("a")))).toMatchObject({ code: "TRB-AUTH-EXPIRED" });
    expect(bus.requests).toHaveLength(1);
  });
});

describe("a full buffer", () => {
  const payload = Buffer.alloc(1000);

  it("lets send wait, in order, and whenRoom tell", async () => {
    let open = () => {};
    const gate = new Promise<void>((go) => {
      open = go;
    });
    bus.behave = async () => {
      await gate;
      return { kind: "take" };
    };
    make({ maxBufferedBytes: 5_000, maxBatchEvents: 1, maxInFlight: 1 });
    const sent = sendAll(many(12, payload));
    let roomy = false;
    const room = producer.whenRoom().then(() => {
      roomy = true;
    });
    await new Promise((go) => setTimeout(go, 30));
    expect(roomy).toBe(false);
    expect(producer.pending.bytes).toBeLessThanOrEqual(5_000);
    expect(producer.pending.events).toBe(12);
    open();
    await sent;
    await room;
    expect(bus.taken.map(({ entityId }) => entityId)).toEqual(many(12).map(({ entityId }) => entityId));
  });

  it("refuses instead, when asked to", async () => {
    bus.behave = () => ({ kind: "silence" });
    make({ maxBufferedBytes: 5_000, whenFull: "reject" });
    const settled = many(5, payload).map((each) => failureOf(producer.send(each)));
    await producer.close({ withinMs: 20 });
    const codes = (await Promise.all(settled)).map(({ code }) => code);
    expect(codes.slice(0, 3)).toEqual(new Array(3).fill("TRB-PRODUCER-CLOSED"));
    expect(codes.slice(3)).toEqual(new Array(2).fill("TRB-PRODUCER-FULL"));
  });

  it("lets an event in that is larger than it, alone", async () => {
    make({ maxBufferedBytes: 100 });
    await sendAll(many(3, payload));
    expect(bus.requests.map(({ events }) => events.length)).toEqual([1, 1, 1]);
  });
});

describe("close", () => {
  it("delivers what was sent, those that wait for room included, and takes no more", async () => {
    make({ lingerMs: 60_000, maxBufferedBytes: 3_000 });
    const sent = sendAll(many(20, Buffer.alloc(500)));
    const closing = producer.close();
    expect(await failureOf(producer.send(event("late")))).toMatchObject({ code: "TRB-PRODUCER-CLOSED" });
    expect(await closing).toEqual({ undelivered: [] });
    await sent;
    expect(bus.taken).toHaveLength(20);
    expect(await producer.close()).toEqual({ undelivered: [] });
  });

  it("tells what it could not deliver, and which of that may be there", async () => {
    bus.behave = ({ events }) =>
      events[0]!.entityId === "a"
        ? { kind: "silence" }
        : { kind: "status", status: 429, code: "TRB-BUS-BUSY" };
    make({ maxBatchEvents: 1, maxInFlight: 1 });
    const events = [event("a"), event("b"), event("a", 2)];
    const errors = events.map((each) => failureOf(producer.send(each)));
    await new Promise((go) => setTimeout(go, 30));
    const { undelivered } = await producer.close({ withinMs: 50 });
    expect(undelivered.map((each) => each.event)).toEqual(events);
    expect(undelivered.map(({ error }) => error)).toEqual(await Promise.all(errors));
    expect(undelivered.map(({ error }) => error.mayHaveLanded)).toEqual([true, false, false]);
    expect(producer.pending.events).toBe(0);
  });

  it("counts what is refused for good meanwhile among what it could not deliver", async () => {
    bus.behave = () => ({ kind: "take", refuse: () => ({ code: "TRB-EVENT-TENANT", retryable: false }) });
    make({ lingerMs: 60_000 });
    const failed = failureOf(producer.send(event("a")));
    const { undelivered } = await producer.close();
    expect(undelivered).toMatchObject([{ event: { entityId: "a" }, error: { code: "TRB-EVENT-TENANT" } }]);
    await failed;
  });
});

describe("whenRoom", () => {
  it("ends with the producer, though what filled the buffer was given up", async () => {
    bus.behave = () => ({
      kind: "status",
      status: 429,
      code: "TRB-BUS-BUSY",
      headers: { "retry-after": "30" },
    });
    make({ maxBufferedBytes: 1 });
    const given = ["a", "b"].map((id) => failureOf(producer.send(event(id))));
    const room = producer.whenRoom();
    await producer.close({ withinMs: 50 });
    await Promise.all([...given, room]);
  });
});

describe("what cannot be", () => {
  it.each([
    ["url", { url: "ftp://x" }],
    ["maxBatchEvents", { maxBatchEvents: 0 }],
    ["lingerMs", { lingerMs: -1 }],
    ["deadlineMs", { deadlineMs: 1.5 }],
    ["uploadAboveBytes", { uploadAboveBytes: 65_534 }],
    ["whenFull", { whenFull: "drop" as "reject" }],
  ])("%s is refused by name", (name, options) => {
    const base = { url: bus.url, token: "t" };
    make();
    expect(() => new Producer({ ...base, ...options })).toThrow(name);
  });

  it.each([
    ["version", { version: 0 }],
    ["version", { version: 2 ** 53 }],
    ["version", { version: "-1" }],
    ["version", { version: 2n ** 63n }],
    ["operation", { operation: "upserted" as "updated" }],
    ["entityId", { entityId: "\ud800" }],
    ["occurredAt", { occurredAt: new Date(Number.NaN) }],
    ["occurredAt", { occurredAt: { seconds: 1.5, nanos: 0 } }],
    ["compression", { compression: "br" as "gzip" }],
    ["payload", { payload: "text" as unknown as Uint8Array }],
  ])("an event with a wrong %s is refused at once", async (field, wrong) => {
    make();
    const error = await failureOf(producer.send({ ...event("a"), ...wrong }));
    expect(error).toMatchObject({
      code: "TRB-PRODUCER-EVENT",
      message: expect.stringContaining(`${field}: `),
    });
    expect(bus.requests).toHaveLength(0);
  });
});
