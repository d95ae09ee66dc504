import { afterEach, describe, expect, it, vi } from "vitest";
import { type Behaviour, FakeBus, type Refusal } from "../test/fake-bus.js";
import { seededRandom } from "../test/seeded-random.js";
import type { ProducerError } from "./errors.js";
import { type ChangeEvent, encodeEvent } from "./event.js";
import { Producer } from "./producer.js";

// The pauses of the real one, a fiftieth as long.
vi.mock("./pause.js", async (original) => {
  const { pauseMs } = await original<typeof import("./pause.js")>();
  return { pauseMs: (attempt: number, retryAfterMs?: number) => pauseMs(attempt, retryAfterMs) / 50 };
});

const SEED = Number(process.env.TEST_SEED ?? Date.now() % 1_000_000);
const ROUNDS = Number(process.env.TEST_ROUNDS ?? 15);

let bus: FakeBus;
afterEach(() => bus.stop());

const poisoned = (version: number) => version % 17 === 5;

/** A bus that does wrong what a bus, and what is in between, can do wrong. */
function misbehaving(random: () => number, wrong: number): () => Behaviour {
  const refusal = (version: number): Refusal | undefined => {
    if (poisoned(version)) return { code: "TRB-EVENT-PAYLOAD-DECODE", retryable: false };
    return random() < wrong / 2 ? { code: "TRB-BUS-BUSY", retryable: true } : undefined;
  };
  const take: Behaviour = { kind: "take", refuse: ({ version }) => refusal(version) };
  return () => {
    if (random() > wrong) return take;
    const faults: Behaviour[] = [
      { kind: "status", status: 429, code: "TRB-BUS-BUSY", headers: { "retry-after": "0.01" } },
      { kind: "status", status: 503, code: "TRB-BUS-STREAM-DOWN" },
      { kind: "status", status: 502 },
      { kind: "status", status: 413, code: "TRB-REQ-TOO-MANY-EVENTS" },
      { kind: "cut", when: "before" },
      { kind: "cut", when: "after" },
      { kind: "cut", when: "half" },
      { kind: "silence" },
    ];
    return faults[Math.floor(random() * faults.length)]!;
  };
}

describe(`a bus that misbehaves at random (seed ${SEED})`, () => {
  it.each(Array.from({ length: ROUNDS }, (_, i) => SEED + i))(
    "loses nothing, invents nothing and keeps each entity's order, seed %i",
    async (seed) => {
      const random = seededRandom(seed);
      const between = (least: number, most: number) => least + Math.floor(random() * (most - least + 1));
      bus = await FakeBus.start();
      const behaviour = misbehaving(random, random() * 0.6);
      bus.behave = async ({ events }) => {
        await new Promise((go) => setTimeout(go, random() * 4));
        const chosen = behaviour();
        // An event that is too large alone is refused for good.
        const alone = chosen.kind === "status" && chosen.status === 413 && events.length === 1;
        return alone ? { kind: "cut", when: "before" } : chosen;
      };
      const producer = new Producer({
        url: bus.url,
        token: () => "t",
        lingerMs: between(0, 3),
        maxBatchEvents: between(1, 40),
        maxInFlight: between(1, 6),
        maxBufferedBytes: between(1, 60) * 1000,
        silenceMs: 60,
        gzip: random() < 0.5,
        deadlineMs: 60_000,
      });
      const sent = new Map<string, "accepted" | ProducerError>();
      const entities = between(1, 30);
      const versions = new Array<number>(entities).fill(0);
      const count = between(20, 250);
      const closeAt = random() < 0.3 ? between(1, count) : count;
      const events: ChangeEvent[] = [];
      const done: Promise<unknown>[] = [];
      for (let i = 0; i < closeAt; i++) {
        const entity = between(0, entities - 1);
        const version = ++versions[entity]!;
        const payload = Buffer.alloc(between(0, 200), `${i}`);
        const event: ChangeEvent = {
          tenantId: "acme",
          entityType: "scm.v1.File",
          entityId: `e${entity}`,
          operation: "updated",
          version,
          payload,
        };
        events.push(event);
        const name = `e${entity}@${version}`;
        done.push(
          producer.send(event).then(
            () => sent.set(name, "accepted"),
            (error: ProducerError) => sent.set(name, error),
          ),
        );
        if (random() < 0.05) await new Promise((go) => setTimeout(go, random() * 5));
        if (random() < 0.02) await producer.flush();
      }
      const hurry = closeAt < count;
      const { undelivered } = await producer.close({ withinMs: hurry ? between(0, 30) : 25_000 });
      await Promise.all(done);

      // Every event has an end, and was settled once.
      expect(sent.size).toBe(events.length);
      const taken = new Map<string, Uint8Array>();
      const last = new Map<string, number>();
      for (const { entityId, version, bytes } of bus.taken) {
        taken.set(`${entityId}@${version}`, bytes);
        expect(version, `${entityId} went back`).toBeGreaterThanOrEqual(last.get(entityId) ?? 0);
        last.set(entityId, version);
      }
      for (const event of events) {
        const name = `${event.entityId}@${event.version}`;
        const end = sent.get(name)!;
        if (end === "accepted") expect(taken.get(name), name).toEqual(Buffer.from(encodeEvent(event)));
        else if (end.code === "TRB-EVENT-PAYLOAD-DECODE") expect(poisoned(Number(event.version))).toBe(true);
        else {
          expect(end.code).toBe("TRB-PRODUCER-CLOSED");
          expect(hurry).toBe(true);
          expect(undelivered.some((each) => each.event === event)).toBe(true);
          if (!end.mayHaveLanded) expect(taken.has(name), name).toBe(false);
        }
      }
      const known = new Set(events.map(({ entityId, version }) => `${entityId}@${version}`));
      expect([...taken.keys()].filter((name) => !known.has(name))).toEqual([]);
      // What was in flight at a hurried end is let go a moment later.
      await vi.waitFor(() => expect(producer.pending).toEqual({ events: 0, bytes: 0 }));
    },
  );
});
