import { TributaryError } from "../base/errors.js";
import type { ChangeStreamWriter } from "../stream/change-stream.js";

/** What an open request occupies beside its body: connection, parser, buffers. */
const REQUEST_BYTES = 16 * 1024;

/** Bytes that one request occupies, from the moment it is let in until its answer is made. */
export interface Reservation {
  /** Takes more, for bytes that have arrived. Errors: TRB-BUS-BUSY. */
  grow(bytes: number): void;
  /** From now on the request cannot be sent away any more. */
  keep(): void;
  release(): void;
}

interface Held extends Reservation {
  readonly producer: Producer;
  bytes: number;
  /** Sends the request away, while that is possible. */
  dismiss: ((error: TributaryError) => void) | undefined;
}

interface Producer {
  bytes: number;
  readonly open: Set<Held>;
}

/**
 * Keeps the bytes of requests in flight and of ingest's backlog within their limits, by refusing what would exceed them.
 * What counts is what has arrived, not what was announced. One producer alone may use all of it; where several want it,
 * none is refused below its share: bodies of those above theirs that are still arriving are sent away for it.
 */
export class Admission {
  private readonly stream: Pick<ChangeStreamWriter, "backlogBytes">;
  private readonly maxInFlightBytes: number;
  private readonly maxLagBytes: number;
  private readonly producers = new Map<string, Producer>();
  private held = 0;

  constructor(
    stream: Pick<ChangeStreamWriter, "backlogBytes">,
    limits: { readonly maxInFlightBytes: number; readonly maxLagBytes: number },
  ) {
    this.stream = stream;
    this.maxInFlightBytes = limits.maxInFlightBytes;
    this.maxLagBytes = limits.maxLagBytes;
  }

  get inFlightBytes(): number {
    return this.held;
  }

  /**
   * Lets a request of this producer in, before any of it is read. Until it is kept, `dismiss` may be called, with which
   * it has released what it held. Errors: TRB-BUS-BUSY.
   */
  enter(name: string, dismiss: (error: TributaryError) => void): Reservation {
    if (this.stream.backlogBytes() > this.maxLagBytes) {
      throw new TributaryError("TRB-BUS-BUSY", "ingest is behind; nothing was accepted");
    }
    const producer = this.producers.get(name) ?? { bytes: 0, open: new Set() };
    this.producers.set(name, producer);
    const request: Held = {
      producer,
      bytes: 0,
      dismiss,
      grow: (bytes) => this.grow(request, bytes),
      keep: () => {
        request.dismiss = undefined;
      },
      release: () => {
        this.held -= request.bytes;
        producer.bytes -= request.bytes;
        request.bytes = 0;
        if (producer.open.delete(request) && producer.open.size === 0) this.producers.delete(name);
      },
    };
    producer.open.add(request);
    try {
      request.grow(REQUEST_BYTES);
    } catch (error) {
      request.release();
      throw error;
    }
    return request;
  }

  private grow(request: Held, bytes: number): void {
    const { producer } = request;
    if (this.held + bytes > this.maxInFlightBytes) {
      const share = this.maxInFlightBytes / this.producers.size;
      // One request alone may always pass: its size has a limit of its own.
      const alone = this.held === request.bytes;
      if (!alone && producer.bytes + bytes > share) throw busy();
      // What others hold beyond their share and cannot give back is on its way into the stream, and soon gone.
      if (!alone) this.makeRoom(bytes, share);
    }
    request.bytes += bytes;
    producer.bytes += bytes;
    this.held += bytes;
  }

  /** Sends bodies away that are still arriving, of those who hold more than `share`, the largest holder first. */
  private makeRoom(bytes: number, share: number): void {
    for (const producer of [...this.producers.values()].sort((a, b) => b.bytes - a.bytes)) {
      for (const request of [...producer.open].sort((a, b) => b.bytes - a.bytes)) {
        if (this.held + bytes <= this.maxInFlightBytes || producer.bytes <= share) break;
        const { dismiss } = request;
        if (dismiss === undefined) continue;
        request.release();
        dismiss(busy());
      }
    }
  }
}

const busy = () => new TributaryError("TRB-BUS-BUSY", "too much is in flight; nothing was accepted");
