import { type Packed, pack } from "./codecs.js";
import { BatchOwners, type PendingAppend } from "./pending-append.js";
import { BatchBuilder, type EventFacts, type ProducerIdentity, sequenceAfter, sign } from "./record-batch.js";
import type { Compression } from "./settings.js";

/** A batch is well used at this size; a larger event gets one of its own. */
const BATCH_BYTES = 1024 * 1024;

interface Filling {
  readonly builder: BatchBuilder;
  readonly owners: BatchOwners;
}

/** A batch that is to be written, again and again in the same form until its fate is known. */
interface Sending {
  readonly owners: BatchOwners;
  readonly count: number;
  readonly eventBytes: number;
  readonly bytes: Buffer;
  readonly since: number;
  signed: boolean;
  /** Whether a request with it may have been carried out without our having heard of it. */
  doubtful: boolean;
}

export interface Stored {
  readonly partition: number;
  readonly events: number;
  readonly bytes: number;
}

/**
 * What waits for one partition, in order. One batch at a time is on its way: so its order is that of the appends, and
 * the sequence numbers by which brokers know a batch that comes twice have no gaps.
 */
export class PartitionLane {
  /** A request with the batch in `sending` is on its way. */
  inFlight = false;
  /** Not to be tried before, in ms of performance.now(). */
  notBefore = 0;
  private readonly waiting: Filling[] = [];
  private sending: Sending | undefined;
  private identity: ProducerIdentity | undefined;
  private sequence = 0;
  private failures = 0;
  private failingSince: number | undefined;
  /** The last batch was given up: the next one is a try, and not waited for as long. */
  private suspect = false;

  constructor(
    readonly partition: number,
    private readonly maxBatchBytes: () => number,
    private readonly compression: Compression,
  ) {}

  get isEmpty(): boolean {
    return this.sending === undefined && this.waiting.length === 0;
  }

  get mustIdentify(): boolean {
    return this.identity === undefined;
  }

  /** Has been failing for longer than `ms`: what is added now would only wait. */
  isDown(ms: number): boolean {
    return this.failingSince !== undefined && performance.now() - this.failingSince > ms;
  }

  add(
    append: PendingAppend,
    event: number,
    slice: readonly [Buffer, number, number],
    facts: EventFacts | undefined,
    timestamp: number,
  ): void {
    let filling = this.waiting.at(-1);
    if (filling === undefined || !filling.builder.add(...slice, facts, timestamp)) {
      filling = {
        builder: new BatchBuilder(Math.min(BATCH_BYTES, this.maxBatchBytes())),
        owners: new BatchOwners(),
      };
      filling.builder.add(...slice, facts, timestamp);
      this.waiting.push(filling);
    }
    filling.owners.add(append, event);
  }

  /** A newer identity counts its batches from 0. What was signed before it was given has been settled. */
  identify(identity: ProducerIdentity): void {
    this.identity = identity;
    this.sequence = 0;
  }

  /** The bytes to send next; the same as before until it is settled. Errors: what packing throws. */
  async next(): Promise<Buffer> {
    if (this.sending === undefined) {
      const filling = this.waiting.shift()!;
      const { builder, owners } = filling;
      const packed = await this.packed(builder.records).catch((error: unknown) => {
        // It is settled like any that waits, or nobody would ever hear of it.
        this.waiting.unshift(filling);
        throw error;
      });
      this.sending = {
        owners,
        count: builder.count,
        eventBytes: builder.eventBytes,
        bytes: builder.finish(packed),
        since: performance.now(),
        signed: false,
        doubtful: false,
      };
    }
    if (!this.sending.signed) {
      sign(this.sending.bytes, this.identity!, this.sequence);
      this.sending.signed = true;
    }
    return this.sending.bytes;
  }

  private async packed(records: Buffer): Promise<Packed | undefined> {
    return this.compression === "none" ? undefined : pack(this.compression, records);
  }

  stored(offset: number): Stored {
    const { owners, count, eventBytes } = this.sending!;
    this.sequence = sequenceAfter(this.sequence, count);
    this.sending = undefined;
    this.recover();
    this.suspect = false;
    owners.keep(offset);
    return { partition: this.partition, events: count, bytes: eventBytes };
  }

  /** It may have been stored or not; sent again, it will not be there twice. */
  doubt(): void {
    this.sending!.doubtful = true;
  }

  /** The brokers do not know our count any more. What they have certainly not stored is counted anew. */
  forget(): boolean {
    if (this.sending?.doubtful === true) return false;
    if (this.sending !== undefined) this.sending.signed = false;
    this.identity = undefined;
    return true;
  }

  /** To be tried again after a pause, unless it has been tried for too long: then false. */
  again(patienceMs: number, triesMs: number): boolean {
    const now = performance.now();
    this.failingSince ??= now;
    if (now - (this.sending?.since ?? this.failingSince) > (this.suspect ? triesMs : patienceMs))
      return false;
    this.failures++;
    this.notBefore = now + Math.min(1_000, 50 * 2 ** Math.min(this.failures, 5)) * (0.75 + Math.random() / 2);
    return true;
  }

  /** Settles all there is: what was sent may be in the stream, what waits is not. */
  giveUp(cause: unknown): void {
    const { sending } = this;
    this.sending = undefined;
    this.suspect = true;
    this.recover();
    // A batch of the same count would be taken for this one.
    if (sending?.signed === true) this.identity = undefined;
    if (sending?.doubtful === true) sending.owners.doubt(cause);
    else sending?.owners.refuse(cause);
    for (const { owners } of this.waiting.splice(0)) owners.refuse(cause);
  }

  /** Settles the batch that is larger than brokers take by now: an event alone for good, several as if there were no room. */
  oversized(cause: unknown): void {
    const { sending } = this;
    if (sending?.doubtful === true) {
      this.reject(cause);
      return;
    }
    this.sending = undefined;
    this.identity = undefined;
    this.recover();
    if (sending?.count === 1) sending.owners.refuseLarge();
    else sending?.owners.refuse();
  }

  /** Settles the batch that the brokers will never take, and goes on with the next. */
  reject(cause: unknown): void {
    const { sending } = this;
    this.sending = undefined;
    this.identity = undefined;
    this.recover();
    if (sending?.doubtful === true) sending.owners.doubt(cause);
    else sending?.owners.refuse(cause);
  }

  /** What failed is settled; the next batch has failed at nothing. */
  private recover(): void {
    this.failures = 0;
    this.failingSince = undefined;
    this.notBefore = 0;
  }
}
