import { contentHash } from "../contracts/content-hash.js";
import { Envelope } from "../contracts/envelope.js";
import type { PayloadFault } from "../offload/payload-of.js";
import type { EntityKeys } from "../table/entity-keys.js";
import { KeyIndex } from "../table/key-index.js";
import {
  CONTENT_HI,
  CONTENT_LO,
  FLAGS,
  OCCURRED_HI,
  OCCURRED_LO,
  ROW,
  TENANT,
  VERSION_HI,
  VERSION_LO,
  WORDS,
} from "../table/order.js";
import { occurredHalves } from "./event-batch.js";
import type { Slice } from "./payloads.js";

/** The winners of a slice: `events[ord]` is the event of record `ord`. */
export interface Winners {
  readonly slice: Slice;
  /** One record an event, ROW = its index in the slice. */
  readonly order: Uint32Array;
  readonly events: readonly number[];
  readonly records: Uint32Array;
}

/** The winners of a slice; `keys` are those of the table's writer. */
export function winnersOf(slice: Slice, keys: EntityKeys): Winners {
  const { count } = slice.events;
  const order = orderRecords(slice, keys);
  const best = new KeyIndex(Math.min(count, 65_536));
  for (let i = 0; i < count; i++) best.putIfGreater(order, i * WORDS);
  const events: number[] = [];
  const { records: slots } = best;
  for (let at = 0; at < slots.length; at += WORDS) {
    if (slots[at + TENANT] !== 0xffffffff) events.push(slots[at + ROW]!);
  }
  events.sort((a, b) => a - b);
  const records = new Uint32Array(events.length * WORDS);
  for (const [ord, event] of events.entries()) {
    records.set(order.subarray(event * WORDS, (event + 1) * WORDS), ord * WORDS);
    records[ord * WORDS + ROW] = ord;
  }
  return { slice, order, events, records };
}

function orderRecords({ events, unpacked }: Slice, keys: EntityKeys): Uint32Array {
  const records = new Uint32Array(events.count * WORDS);
  const envelope = new Envelope();
  const wide = new BigInt64Array(1);
  const halves = new Uint32Array(wide.buffer);
  for (let i = 0; i < events.count; i++) {
    const at = i * WORDS;
    events.read(i, envelope);
    const { bytes, tenantStart, tenantEnd, idStart, idEnd } = envelope;
    keys.put(records, at, bytes, tenantStart, tenantEnd, bytes, idStart, idEnd);
    records[at + VERSION_LO] = envelope.versionLo;
    records[at + VERSION_HI] = envelope.versionHi;
    wide[0] = hashOf(envelope, unpacked.size === 0 ? undefined : unpacked.get(i));
    records[at + CONTENT_LO] = halves[0]!;
    records[at + CONTENT_HI] = halves[1]!;
    if (occurredHalves(envelope, halves)) {
      records[at + OCCURRED_LO] = halves[0]!;
      records[at + OCCURRED_HI] = halves[1]! ^ 0x80000000;
    }
    records[at + FLAGS] = envelope.operation;
    records[at + ROW] = i;
  }
  return records;
}

function hashOf(envelope: Envelope, unpacked: Buffer | PayloadFault | undefined): bigint {
  const { bytes, typeUrlStart, typeUrlEnd, payloadStart, payloadEnd } = envelope;
  if (payloadStart < 0 && envelope.referenceStart < 0) return contentHash(bytes, 0, 0, bytes, 0, 0);
  if (Buffer.isBuffer(unpacked)) {
    return contentHash(bytes, typeUrlStart, typeUrlEnd, unpacked, 0, unpacked.length);
  }
  // One without its payload is set aside; until then what is there of it stands for it.
  return payloadStart < 0
    ? contentHash(bytes, typeUrlStart, typeUrlEnd, bytes, envelope.referenceStart, envelope.referenceEnd)
    : contentHash(bytes, typeUrlStart, typeUrlEnd, bytes, payloadStart, payloadEnd);
}
