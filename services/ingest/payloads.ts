import type { Permits } from "../base/permits.js";
import { Envelope } from "../contracts/envelope.js";
import { referenceOf } from "../contracts/payload-reference.js";
import type { Offloaded } from "../offload/offloaded.js";
import { type PayloadFault, payloadAt, unpacked } from "../offload/payload-of.js";
import { EventBatch } from "./event-batch.js";

/** So much may be unpacked without a permit: batches of small packed payloads wait for nobody. */
const FREE_BYTES = 2 * 1024 * 1024;

/** An unpacked payload lies beside the packed one; and who sends much of it gives others a turn more often. */
const UNPACKED_WEIGHT = 2;

/** Part of a batch that is decoded at once, its packed payloads unpacked and offloaded ones fetched, each once. */
export interface Slice {
  readonly events: EventBatch;
  /** Of those that do not lie plainly in their event, the payloads, or why there is none. */
  readonly unpacked: ReadonlyMap<number, Buffer | PayloadFault>;
  /** Says that its payloads are not needed any more; may be said twice. */
  readonly release: () => void;
}

/** What slices are cut by. */
export interface Slicing {
  /** Bytes of decoded payloads that one slice has at most, or those of one event. */
  readonly sliceBytes: number;
  /** Held while more than a little is unpacked. */
  readonly permits: Permits;
  /** Where payloads are that do not travel with their events. */
  readonly offloaded: Offloaded;
}

/**
 * Cuts a batch, in its order, into slices. A slice is unpacked when it is asked for, so that memory holds one of this
 * batch at a time, whatever the payloads announce; and as many of all batches together as there are permits.
 * Errors: TRB-STORE-FAILED, when an offloaded payload cannot be fetched now.
 */
export async function* slicesOf(batch: EventBatch, slicing: Slicing): AsyncGenerator<Slice> {
  const { sliceBytes: budget, permits, offloaded } = slicing;
  if (batch.packedCount === 0 && batch.offloadedCount === 0 && batch.byteCount <= budget) {
    yield whole(batch);
    return;
  }
  const envelope = new Envelope();
  let slice = new Growing(batch);
  try {
    for (let i = 0; i < batch.count; i++) {
      batch.read(i, envelope);
      const elsewhere = envelope.referenceStart >= 0;
      const reference = elsewhere ? referenceOf(envelope) : undefined;
      const coming = reference?.sizeBytes ?? 0;
      if (slice.events.count > 0 && slice.decodedBytes + UNPACKED_WEIGHT * coming > budget) {
        yield slice;
        slice.release();
        slice = new Growing(batch);
      }
      if (slice.unpackedBytes + coming > FREE_BYTES) await slice.permit(permits);
      let payload: Buffer | PayloadFault | undefined;
      if (elsewhere) payload = await payloadAt(reference, envelope.compression, offloaded);
      else if (envelope.compression !== 0) payload = unpack(envelope.compression, envelope.payload());
      const bytes =
        payload === undefined ? envelope.end - envelope.start : UNPACKED_WEIGHT * lengthOf(payload);
      if (slice.events.count > 0 && slice.decodedBytes + bytes > budget) {
        yield slice;
        slice.release();
        slice = new Growing(batch);
        if (lengthOf(payload) > FREE_BYTES) await slice.permit(permits);
      }
      slice.take(batch, i, envelope, payload, bytes);
    }
    if (slice.events.count > 0) yield slice;
  } finally {
    slice.release();
  }
}

/**
 * Before events land or are parked, after which their stream may forget them: their payloads stay from now on.
 * Errors: TRB-STORE-FAILED.
 */
export async function keepPayloads(batch: EventBatch, offloaded: Offloaded): Promise<void> {
  if (batch.offloadedCount === 0) return;
  const envelope = new Envelope();
  const uris: string[] = [];
  for (const i of batch.offloaded) {
    batch.read(i, envelope);
    const reference = referenceOf(envelope);
    if (reference !== undefined) uris.push(reference.uri);
  }
  await offloaded.keepForGood(uris);
}

/** A batch without packed payloads, or without events, as one slice. */
export const whole = (events: EventBatch): Slice => ({
  events,
  unpacked: new Map(),
  release: () => undefined,
});

class Growing implements Slice {
  readonly events: EventBatch;
  readonly unpacked = new Map<number, Buffer | PayloadFault>();
  decodedBytes = 0;
  unpackedBytes = 0;
  private giveBack: (() => void) | undefined;

  constructor(of: EventBatch) {
    this.events = new EventBatch(of.entityType, of.stream);
  }

  async permit(permits: Permits): Promise<void> {
    this.giveBack ??= await permits.acquire();
  }

  take(
    batch: EventBatch,
    i: number,
    envelope: Envelope,
    payload: Buffer | PayloadFault | undefined,
    bytes: number,
  ): void {
    if (payload !== undefined) this.unpacked.set(this.events.count, payload);
    this.events.take(batch, i, envelope);
    this.decodedBytes += bytes;
    this.unpackedBytes += lengthOf(payload);
  }

  readonly release = (): void => this.giveBack?.();
}

/** Deletes have no payload, whatever they say it is packed by. */
const unpack = (compression: number, packed: Buffer | undefined): Buffer | PayloadFault =>
  unpacked(compression, packed ?? Buffer.alloc(0));

const lengthOf = (payload: Buffer | PayloadFault | undefined): number =>
  Buffer.isBuffer(payload) ? payload.length : 0;

/** The events of a slice that `keep` says yes to. */
export function partOf(slice: Slice, keep: (i: number) => boolean): Slice {
  const unpacked = new Map<number, Buffer | PayloadFault>();
  const events = slice.events.filter(keep);
  for (let i = 0, at = 0; i < slice.events.count; i++) {
    if (!keep(i)) continue;
    const payload = slice.unpacked.get(i);
    if (payload !== undefined) unpacked.set(at, payload);
    at++;
  }
  return { events, unpacked, release: slice.release };
}

/**
 * What every tenant may have taken in before heavy events of whomever: a share of decoded bytes each, so that nobody
 * waits for another tenant's large payloads. Offloaded ones are never light.
 */
export function lightOf(batch: EventBatch, shareBytes: number): EventBatch {
  const envelope = new Envelope();
  const spent = new Map<string, number>();
  return batch.filter((i) => {
    batch.read(i, envelope);
    if (envelope.referenceStart >= 0) return false;
    const tenant = envelope.bytes.toString("latin1", envelope.tenantStart, envelope.tenantEnd);
    const before = spent.get(tenant) ?? 0;
    if (before >= shareBytes) return false;
    const { compression } = envelope;
    const bytes =
      compression === 0 ? envelope.end - envelope.start : lengthOf(unpack(compression, envelope.payload()));
    spent.set(tenant, before + bytes);
    return true;
  });
}
