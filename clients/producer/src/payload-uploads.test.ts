import { createHash } from "node:crypto";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeBus } from "../test/fake-bus.js";
import { type ChangeEvent, encodeEvent, typeUrlOf, withReference } from "./event.js";
import { Producer } from "./producer.js";

let bus: FakeBus;
let producer: Producer;
beforeEach(async () => {
  bus = await FakeBus.start();
  producer = new Producer({ url: bus.url, token: "t", uploadAboveBytes: 65_535, deadlineMs: 20_000 });
});
afterEach(async () => {
  await producer.close({ withinMs: 0 });
  await bus.stop();
});

const large = Buffer.alloc(3_000_000, "large");
const event = (version: number, payload: Uint8Array): ChangeEvent => ({
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId: "a",
  operation: "updated",
  version,
  payload,
});
const digest = createHash("sha256").update(large).digest();
const uri = `offload/acme/${digest.toString("hex")}`;
const reference = { uri, typeUrl: typeUrlOf("scm.v1.File"), sizeBytes: large.length, sha256: digest };

describe("a large payload", () => {
  it("is uploaded once, and its event refers to it, in the entity's order", async () => {
    const payload = Buffer.from(large);
    const sent = [
      event(1, Buffer.alloc(10)),
      event(2, payload),
      event(3, large),
      event(4, Buffer.alloc(65_535)),
    ].map((each) => producer.send(each));
    // It may be reused.
    payload.fill(0);
    await Promise.all(sent);
    expect(bus.taken.map(({ version }) => version)).toEqual([1, 2, 3, 4]);
    expect(bus.objects.get(`/${uri}`)?.equals(large)).toBe(true);
    expect(bus.puts).toBe(1);
    for (const { version, bytes } of bus.taken.slice(1, 3)) {
      const { payload: _, ...rest } = event(version, large);
      expect(Buffer.from(bytes)).toEqual(Buffer.from(withReference(encodeEvent(rest), reference)));
    }
    expect(producer.pending).toEqual({ events: 0, bytes: 0 });
  });

  it("goes with its event as that was when it was sent, though the caller fills one object again and again", async () => {
    const filled = { ...event(0, large), attributes: { number: "" }, occurredAt: new Date(0) };
    const sent: Promise<unknown>[] = [];
    const expected: Buffer[] = [];
    for (let version = 1; version <= 3; version++) {
      const payload = Buffer.alloc(70_000, version);
      Object.assign(filled, { version, payload, entityId: `e${version}` });
      filled.attributes.number = String(version);
      filled.occurredAt.setTime(version);
      const sha256 = createHash("sha256").update(payload).digest();
      const where = {
        ...reference,
        uri: `offload/acme/${sha256.toString("hex")}`,
        sizeBytes: 70_000,
        sha256,
      };
      const { payload: _, ...rest } = filled;
      expected.push(Buffer.from(withReference(encodeEvent(rest), where)));
      sent.push(producer.send(filled));
    }
    Object.assign(filled, { tenantId: "other", entityType: "other.v1.File", version: -1 });
    await Promise.all(sent);
    const taken = bus.taken.toSorted((a, b) => a.version - b.version);
    expect(taken.map(({ bytes }) => Buffer.from(bytes))).toEqual(expected);
    expect(producer.pending).toEqual({ events: 0, bytes: 0 });
  });

  it("that the bus does not find any more is uploaded once more, and no oftener", async () => {
    const known: string[] = [];
    const missing = { code: "TRB-EVENT-PAYLOAD-MISSING", retryable: false };
    bus.behave = ({ number }) => {
      known.push([...bus.objects.keys()].join());
      if (number === 1) bus.objects.clear();
      return { kind: "take", refuse: ({ version }) => (number === 1 || version > 2 ? missing : undefined) };
    };
    await producer.send(event(1, large));
    expect(known).toEqual([`/${uri}`, `/${uri}`]);
    expect([bus.puts, bus.taken.length]).toEqual([2, 1]);
    const [second, third] = await Promise.allSettled([
      producer.send(event(2, large)),
      producer.send(event(3, Buffer.alloc(70_000))),
    ]);
    expect(second.status).toBe("fulfilled");
    expect(third).toMatchObject({ reason: { code: "TRB-EVENT-PAYLOAD-MISSING", refused: "event" } });
    expect(known).toHaveLength(5);
    expect(producer.pending).toEqual({ events: 0, bytes: 0 });
  });

  it("whose place makes no sense is asked for again, and holds up no other", async () => {
    let told = 0;
    bus.place = (where) => (++told <= 3 ? "\ud800" : where);
    await Promise.all(
      ["a", "b", "c", "d"].map((entityId, i) =>
        producer.send({ ...event(1, Buffer.alloc(70_000, i)), entityId }),
      ),
    );
    expect(bus.taken).toHaveLength(4);
    expect(told).toBe(7);
  });

  it("that is no bytes is refused at once", async () => {
    const text = "1".repeat(70_000) as unknown as Uint8Array;
    await expect(producer.send(event(1, text))).rejects.toMatchObject({ code: "TRB-PRODUCER-EVENT" });
  });

  it("goes to the bus itself where that says so", async () => {
    bus.ticketed = true;
    await producer.send(event(1, large));
    expect(bus.objects.get(`/${uri}`)?.equals(large)).toBe(true);
  });

  it("is tried again while that may help, with a fresh permission each time", async () => {
    bus.presign = (asked) => (asked === 1 ? 503 : 200);
    bus.put = (asked) => [500, 403, 401, 412][asked - 1] ?? 200;
    await producer.send(event(1, large));
    expect([bus.presigned, bus.puts]).toEqual([5, 4]);
    expect(bus.taken).toHaveLength(1);
  });

  it("that may not be uploaded refuses its event, and the next one goes on", async () => {
    bus.presign = () => 403;
    const [refused, small] = await Promise.allSettled([
      producer.send(event(1, large)),
      producer.send(event(2, digest)),
    ]);
    expect(refused).toMatchObject({ reason: { code: "TRB-AUTH-TENANT", refused: "request" } });
    expect(small.status).toBe("fulfilled");
  });

  it("that cannot be uploaded in time is given up, and is told of by close", async () => {
    bus.put = () => 500;
    const sent = producer.send(event(1, large)).catch((error: unknown) => error);
    await new Promise((go) => setTimeout(go, 50));
    const { undelivered } = await producer.close({ withinMs: 100 });
    expect(undelivered).toMatchObject([{ error: { code: "TRB-PRODUCER-CLOSED", mayHaveLanded: false } }]);
    expect(await sent).toBe(undelivered[0]!.error);
    expect(producer.pending).toEqual({ events: 0, bytes: 0 });
    expect(bus.taken).toEqual([]);
  });
});
