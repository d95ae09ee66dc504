import type { Permits } from "../base/permits.js";
import { Envelope } from "../contracts/envelope.js";
import { unpackPayload } from "../contracts/unpack.js";
import { EventBatch } from "./event-batch.js";

/** Unpacked payloads beyond this are a fault of the event. */
const MAX_UNPACKED_BYTES = 64 * 1024 * 1024;
/** So much may be unpacked without a permit: batches of small packed payloads wait for nobody. */
const FREE_BYTES = 2 * 1024 * 1024;

/** An unpacked payload lies beside the packed one; and who sends much of it gives others a turn more often. */
const UNPACKED_WEIGHT = 2;

/** Part of a batch that is decoded at once, its packed payloads unpacked, each of them once. */
export interface Slice {
  readonly events: EventBatch;
  /** Undefined for a payload that does not unpack; not there for one that is not packed. */
  readonly unpacked: ReadonlyMap<number, Buffer | undefined>;
  /** Says that its payloads are not needed any more; may be said twice. */
  readonly release: () => void;
}

/**
 * Cuts a batch, in its order, into slices of at most `budget` bytes of decoded payloads, or of one event. A slice is
 * unpacked when it is asked for, so that memory holds one of this batch at a time, whatever the payloads announce; and
 * as many of all batches together as there are `permits`.
 */
export async function* slicesOf(batch: EventBatch, budget: number, permits: Permits): AsyncGenerator<Slice> {
  if (batch.packedCount === 0 && batch.byteCount <= budget) {
    yield whole(batch);
    return;
  }
  const envelope = new Envelope();
  let slice = new Growing(batch);
  try {
    for (let i = 0; i < batch.count; i++) {
      if (slice.unpackedBytes > FREE_BYTES) await slice.permit(permits);
      batch.read(i, envelope);
      const payload = envelope.compression === 0 ? undefined : unpack(envelope);
      const bytes = payload === undefined ? envelope.end - envelope.start : UNPACKED_WEIGHT * payload.length;
      if (slice.events.count > 0 && slice.decodedBytes + bytes > budget) {
        yield slice;
        slice.release();
        slice = new Growing(batch);
      }
      slice.take(batch, i, envelope, payload, bytes);
    }
    if (slice.events.count > 0) yield slice;
  } finally {
    slice.release();
  }
}

/** A batch without packed payloads, or without events, as one slice. */
export const whole = (events: EventBatch): Slice => ({
  events,
  unpacked: new Map(),
  release: () => undefined,
});

class Growing implements Slice {
  readonly events: EventBatch;
  readonly unpacked = new Map<number, Buffer | undefined>();
  decodedBytes = 0;
  unpackedBytes = 0;
  private giveBack: (() => void) | undefined;

  constructor(of: EventBatch) {
    this.events = new EventBatch(of.entityType, of.stream);
  }

  async permit(permits: Permits): Promise<void> {
    this.giveBack ??= await permits.acquire();
  }

  take(batch: EventBatch, i: number, envelope: Envelope, payload: Buffer | undefined, bytes: number): void {
    if (envelope.compression !== 0) this.unpacked.set(this.events.count, payload);
    this.events.take(batch, i, envelope);
    this.decodedBytes += bytes;
    this.unpackedBytes += payload?.length ?? 0;
  }

  readonly release = (): void => this.giveBack?.();
}

function unpack(envelope: Envelope): Buffer | undefined {
  const packed = envelope.bytes.subarray(envelope.payloadStart, envelope.payloadEnd);
  const unpacked = unpackPayload(envelope.compression, packed, MAX_UNPACKED_BYTES);
  if (typeof unpacked === "string") return undefined;
  return Buffer.from(unpacked.buffer, unpacked.byteOffset, unpacked.byteLength);
}

/** The events of a slice that `keep` says yes to. */
export function partOf(slice: Slice, keep: (i: number) => boolean): Slice {
  const unpacked = new Map<number, Buffer | undefined>();
  const events = slice.events.filter(keep);
  for (let i = 0, at = 0; i < slice.events.count; i++) {
    if (!keep(i)) continue;
    if (slice.unpacked.has(i)) unpacked.set(at, slice.unpacked.get(i));
    at++;
  }
  return { events, unpacked, release: slice.release };
}

/**
 * What every tenant may have taken in before heavy events of whomever: a share of decoded bytes each, so that nobody
 * waits for another tenant's large payloads.
 */
export function lightOf(batch: EventBatch, shareBytes: number): EventBatch {
  const envelope = new Envelope();
  const spent = new Map<string, number>();
  return batch.filter((i) => {
    batch.read(i, envelope);
    const tenant = envelope.bytes.toString("latin1", envelope.tenantStart, envelope.tenantEnd);
    const before = spent.get(tenant) ?? 0;
    if (before >= shareBytes) return false;
    const bytes = envelope.compression === 0 ? envelope.end - envelope.start : unpack(envelope)?.length;
    spent.set(tenant, before + (bytes ?? 0));
    return true;
  });
}
