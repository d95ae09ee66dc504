import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeBus } from "../test/fake-bus.js";
import type { ProducerError } from "./errors.js";
import type { ChangeEvent } from "./event.js";
import { type LendLimits, type Outbox, OutboxRelay, type RelayOptions, type Settlement } from "./outbox.js";
import { Producer } from "./producer.js";

/** An outbox in memory that lends all it has, to one borrower at a time. */
class MemoryOutbox implements Outbox {
  readonly waiting: ChangeEvent[] = [];
  readonly rejected: ChangeEvent[] = [];
  readonly loans: (readonly Settlement[])[] = [];
  failures = 0;
  private lent = false;

  async lend(
    { events }: LendLimits,
    publish: (events: readonly ChangeEvent[]) => Promise<readonly Settlement[]>,
  ) {
    if (this.failures > 0) {
      this.failures--;
      throw new Error("the database is away");
    }
    if (this.lent || this.waiting.length === 0) return 0;
    this.lent = true;
    const taken = this.waiting.slice(0, events);
    const settlements = await publish(taken);
    this.loans.push(settlements);
    for (const [i, event] of taken.entries()) {
      if (settlements[i] === "kept") continue;
      this.waiting.splice(this.waiting.indexOf(event), 1);
      if (settlements[i] !== "delivered") this.rejected.push(event);
    }
    this.lent = false;
    return taken.length;
  }
}

let bus: FakeBus;
let outbox: MemoryOutbox;
let producer: Producer;
const stop = { now: () => {} };
let ran: Promise<void> = Promise.resolve();
beforeEach(async () => {
  bus = await FakeBus.start();
  outbox = new MemoryOutbox();
  producer = new Producer({ url: bus.url, token: "t", deadlineMs: 250, silenceMs: 200 });
});
afterEach(async () => {
  stop.now();
  await ran;
  await producer.close({ withinMs: 0 });
  await bus.stop();
});

const run = (options: Partial<RelayOptions> = {}) => {
  const controller = new AbortController();
  stop.now = () => controller.abort();
  ran = new OutboxRelay({ outbox, producer, idleMs: 5, ...options }).run(controller.signal);
};
const event = (entityId: string, version: number): ChangeEvent => ({
  tenantId: "t",
  entityType: "a.B",
  entityId,
  operation: "deleted",
  version,
});
const empty = async () => {
  while (outbox.waiting.length > 0) await new Promise((go) => setTimeout(go, 5));
};
const taken = () => bus.taken.map(({ entityId, version }) => `${entityId}${version}`);

describe("a relay", () => {
  it("publishes what waits, each entity's events in order, and what comes later", async () => {
    outbox.waiting.push(event("a", 1), event("b", 1), event("a", 2));
    run();
    await empty();
    outbox.waiting.push(event("a", 3));
    await empty();
    expect(taken().filter((name) => name.startsWith("a"))).toEqual(["a1", "a2", "a3"]);
    expect(taken()).toContain("b1");
  });

  it("lets nothing of an entity pass what was not settled, and others go on", async () => {
    let held = true;
    const refusal = { code: "TRB-BUS-TABLE-HELD", retryable: true };
    bus.behave = () => ({
      kind: "take",
      refuse: ({ entityId, version }) => (held && entityId === "a" && version === 1 ? refusal : undefined),
    });
    outbox.waiting.push(event("a", 1), event("a", 2), event("b", 1));
    const troubles: unknown[] = [];
    run({ onTrouble: (error) => troubles.push(error) });
    while (outbox.loans.length === 0) await new Promise((go) => setTimeout(go, 5));
    expect(outbox.loans[0]).toEqual(["kept", "kept", "delivered"]);
    expect(troubles).toMatchObject([{ code: "TRB-PRODUCER-DEADLINE" }]);
    held = false;
    await empty();
    expect(taken()).toEqual(["b1", "a1", "a2"]);
  });

  it("rejects what the bus refuses for good, or what has no encoding, and goes on behind it", async () => {
    bus.behave = () => ({
      kind: "take",
      refuse: ({ version }) => (version === 1 ? { code: "TRB-EVENT-TENANT", retryable: false } : undefined),
    });
    const broken = { ...event("b", 2), operation: "moved" as "updated" };
    outbox.waiting.push(event("a", 1), event("a", 2), broken);
    const told: string[] = [];
    run({ onRejected: (_, { code }: ProducerError) => told.push(code) });
    await empty();
    expect(outbox.rejected).toEqual([event("a", 1), broken]);
    expect(told.sort()).toEqual(["TRB-EVENT-TENANT", "TRB-PRODUCER-EVENT"]);
    expect(taken()).toEqual(["a2"]);
  });

  it("rejects nothing for a token that is not taken: events wait for a better one", async () => {
    let good = false;
    bus.behave = () => (good ? { kind: "take" } : { kind: "status", status: 401, code: "TRB-AUTH-EXPIRED" });
    outbox.waiting.push(event("a", 1));
    run();
    while (outbox.loans.length < 2) await new Promise((go) => setTimeout(go, 5));
    expect(outbox.rejected).toEqual([]);
    good = true;
    await empty();
    expect(taken()).toEqual(["a1"]);
  });

  it("goes on when the store fails for a while", async () => {
    outbox.failures = 3;
    outbox.waiting.push(event("a", 1));
    const troubles: unknown[] = [];
    run({ onTrouble: (error) => troubles.push(error) });
    await empty();
    expect(troubles).toHaveLength(3);
  });

  it("that is stopped settles what was answered, and begins nothing more", async () => {
    let answer = () => {};
    const asked = new Promise<void>((go) => {
      bus.behave = async () => {
        go();
        await new Promise<void>((then) => {
          answer = then;
        });
        return { kind: "take" };
      };
    });
    outbox.waiting.push(event("a", 1), event("a", 2));
    run();
    await asked;
    stop.now();
    answer();
    await ran;
    expect(outbox.loans).toEqual([["delivered", "kept"]]);
    expect(outbox.waiting).toEqual([event("a", 2)]);
  });
});
