import { type ProducerCode, ProducerError } from "./errors.js";
import type { ChangeEvent } from "./event.js";

/** Where an accepted event stands in the stream. */
export interface Receipt {
  readonly partition: string;
  readonly position: string;
}

/**
 * Outside: waits for room. Behind: an older event of its entity is not settled. Ready: may be sent. Flying: in a
 * request. Resting: was refused for now.
 */
export type Place = "outside" | "behind" | "ready" | "flying" | "resting";

/** What an entry occupies beside its bytes, about. */
const OVERHEAD_BYTES = 512;

/** An event from `send` until nothing of it is in flight any more. */
export class Entry {
  /** The caller's own object, which may have been filled anew since. */
  readonly event: ChangeEvent;
  /** Whose it was at `send`. */
  readonly entity: Pick<ChangeEvent, "tenantId" | "entityType" | "entityId">;
  /** The event on the wire; of one with an `upload`, without what refers to its payload until that is uploaded. */
  bytes: Uint8Array;
  /** As it was at `send`. */
  readonly encoded: Uint8Array;
  /** The payload that is to be uploaded before the event may leave; kept, as what was uploaded may be gone again. */
  readonly upload: Uint8Array | undefined;
  /** How often it was. */
  uploads = 0;
  /** What it counts for in the buffer. */
  readonly size: number;
  /** performance.now() at `send`. */
  readonly since: number;
  readonly receipt: Promise<Receipt>;
  /** Resolves when the promise given to the caller is settled. */
  readonly settled: Promise<void>;
  /** Refusals of this event alone. */
  attempts = 0;
  /** A request that held it ended without a clear answer. */
  mayHaveLanded = false;
  place: Place = "outside";
  /** Accepted, or given up. */
  done = false;
  /** Why it was given up; undefined otherwise. */
  error: ProducerError | undefined;
  /** What stood in the way last. */
  obstacle: ProducerError | undefined;
  private resolve!: (receipt: Receipt) => void;
  private reject!: (error: ProducerError) => void;

  constructor(event: ChangeEvent, bytes: Uint8Array, upload: Uint8Array | undefined, since: number) {
    this.event = event;
    const { tenantId, entityType, entityId } = event;
    this.entity = { tenantId, entityType, entityId };
    this.bytes = bytes;
    this.encoded = bytes;
    this.upload = upload;
    this.size = bytes.length + (upload?.length ?? 0) + OVERHEAD_BYTES;
    this.since = since;
    this.receipt = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.settled = this.receipt.then(
      () => undefined,
      () => undefined,
    );
  }

  accept(receipt: Receipt): void {
    this.done = true;
    this.resolve(receipt);
  }

  giveUp(error: ProducerError): void {
    if (this.done) return;
    this.done = true;
    this.error = error;
    this.reject(error);
  }

  /** Gives up for a reason of the library's own, with what stood in the way last as its cause. */
  abandon(code: ProducerCode, message: string): void {
    const { obstacle } = this;
    const words =
      obstacle === undefined ? message : `${message}; last: ${obstacle.code}: ${obstacle.message}`;
    const mayHaveLanded = this.place === "flying" || this.mayHaveLanded;
    this.giveUp(new ProducerError(code, words, { retryable: true, mayHaveLanded, cause: obstacle }));
  }
}
