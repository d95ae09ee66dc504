import { expect, test } from "vitest";
import { Lake, Random, seeds, THING } from "../../test/support/lake.js";
import { type EventInit, encodeEvent } from "../contracts/encode-event.js";
import { Envelope } from "../contracts/envelope.js";
import { progressOf } from "../table/progress.js";
import { EventBatch } from "./event-batch.js";
import { originals, readRange } from "./replay.js";

const SECONDS = [-62_135_596_800, -1, 0, 1, 1_700_000_000, 253_402_300_799];
const NANOS = [0, 1_000, 500_000_000, 999_999_000];
const VERSIONS = [1n, 127n, 128n, (1n << 31n) + 5n, 1n << 32n, 1n << 53n, (1n << 63n) - 1n];
const IDS = ["x", "päth/ключ/🗝", "i".repeat(127), "i".repeat(128), "i".repeat(1024)];
const SIZES = [0, 1, 127, 128, 300, 16_383, 16_384];

/** What a reference says is not judged on the way. */
const REFERENCE = { uri: 'offload/a b/\n"é', typeUrl: "x/t.v1.Thing", sha256: Buffer.alloc(32, 0xab) };

function randomEvent(random: Random): EventInit {
  const pick = <T>(some: readonly T[]): T => some[random.below(some.length)]!;
  const maybe = <T extends object>(value: T): T | object => (random.below(2) === 0 ? value : {});
  return {
    tenantId: pick(["a", "acme", "t".repeat(128)]),
    entityType: THING,
    entityId: pick(IDS),
    operation: 1 + random.below(3),
    version: pick(VERSIONS),
    ...maybe({ occurredAt: { seconds: pick(SECONDS), nanos: pick(NANOS) } }),
    ...pick<Partial<EventInit>>([
      {},
      { payload: { value: Buffer.alloc(pick(SIZES), 7) }, compression: random.below(3) },
      { reference: { ...REFERENCE, sizeBytes: pick(VERSIONS) }, compression: random.below(3) },
    ]),
    ...maybe({ attributes: { traceparent: "00-ä", producer: "" } }),
    ...maybe({ eventId: pick(["e1", "é".repeat(100)]) }),
  };
}

/** All that an envelope says, as values. */
function told(envelope: Envelope) {
  const { bytes } = envelope;
  const text = (start: number, end: number) => bytes.toString("hex", start, end);
  return {
    tenant: text(envelope.tenantStart, envelope.tenantEnd),
    type: text(envelope.typeStart, envelope.typeEnd),
    id: text(envelope.idStart, envelope.idEnd),
    operation: envelope.operation,
    version: [envelope.versionLo, envelope.versionHi],
    occurred: [envelope.occurredSeconds, envelope.occurredNanos],
    url: text(envelope.typeUrlStart, envelope.typeUrlEnd),
    payload: envelope.payloadStart < 0 ? undefined : text(envelope.payloadStart, envelope.payloadEnd),
    reference: envelope.referenceStart < 0 ? undefined : text(envelope.referenceStart, envelope.referenceEnd),
    compression: envelope.compression,
  };
}

const parsed = (event: Buffer): Envelope => {
  const envelope = new Envelope();
  expect(envelope.read(event, 0, event.length)).toBeUndefined();
  return envelope;
};

test("events come back from raw as they were published, with and without what no model may see", async () => {
  for (const seed of seeds(1)) {
    const lake = await Lake.create();
    try {
      const random = new Random(seed);
      const published = new Map<string, Buffer>();
      const batch = new EventBatch(THING, "test");
      for (let i = 1; i <= 120; i++) {
        const event = encodeEvent(randomEvent(random));
        if (new Envelope().read(event, 0, event.length) !== undefined) continue;
        const position = String(i).padStart(12, "0");
        published.set(position, event);
        batch.add(event, 0, event.length, "0", position, 1_700_000_000_000 + i);
      }
      expect(published.size).toBeGreaterThan(30);
      const lane = await lake.lane();
      await lane.land(batch);
      const { raw: table } = lane;
      await lake.context.duck.with(async (connection) => {
        const view = { table, snapshot: table.snapshot, connection, entityType: THING };
        const to = progressOf(table.snapshot);
        const seen = new Set<string>();
        await readRange(view, new Map(), to, { events: 70, bytes: 200_000 }, async (some) => {
          expect(some.count).toBeLessThanOrEqual(70);
          for (let i = 0; i < some.count; i++) {
            const position = some.positions[i]!;
            seen.add(position);
            const expected = told(parsed(published.get(position)!));
            const read = new Envelope();
            some.read(i, read);
            expect(told(read), `seed ${seed}, ${position}`).toEqual(expected);
            expect(told(parsed(some.event(i))), `seed ${seed}, ${position} on the wire`).toEqual(expected);
            expect(some.receivedAt[i]).toBe(1_700_000_000_000 + Number(position));
          }
          return true;
        });
        expect([...seen].sort()).toEqual([...published.keys()].sort());
        const wanted = [...published.keys()].map((position) => ({ partition: "0", position }));
        const whole = await originals(view, "test", wanted);
        for (const [position, event] of published) {
          const [before, after] = [parsed(event), parsed(whole.get(`0/${position}`)!)];
          expect(told(after)).toEqual(told(before));
          const more = (one: Envelope) => [
            one.bytes.toString("utf8", one.eventIdStart, one.eventIdEnd),
            ...Array.from({ length: one.attributeCount * 2 }, (_, i) =>
              one.bytes.toString("utf8", one.attributes[i * 2], one.attributes[i * 2 + 1]),
            ).sort(),
          ];
          expect(more(after), `seed ${seed}, ${position}`).toEqual(more(before));
        }
      });
    } finally {
      await lake.close();
    }
  }
});
