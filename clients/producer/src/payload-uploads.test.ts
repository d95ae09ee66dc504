import { createHash } from "node:crypto";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeBus } from "../test/fake-bus.js";
import { type ChangeEvent, encodeEvent, typeUrlOf } from "./event.js";
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
      expect(Buffer.from(bytes)).toEqual(Buffer.from(encodeEvent(event(version, large), reference)));
    }
    expect(producer.pending).toEqual({ events: 0, bytes: 0 });
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
