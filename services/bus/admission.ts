import { TributaryError } from "../base/errors.js";
import type { ChangeStreamWriter } from "../stream/change-stream.js";

/** Bytes that one request occupies, from the moment it is let in until its answer is made. */
export interface Reservation {
  /** Takes more. Errors: TRB-BUS-BUSY. */
  grow(bytes: number): void;
  release(): void;
}

/** Keeps the bytes of requests in flight and of ingest's backlog within their limits, by refusing what would exceed them. */
export class Admission {
  private readonly stream: Pick<ChangeStreamWriter, "backlogBytes">;
  private readonly maxInFlightBytes: number;
  private readonly maxLagBytes: number;
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

  /** Lets a request in that will occupy at least `bytes`, before any of it is read. Errors: TRB-BUS-BUSY. */
  enter(bytes: number): Reservation {
    if (this.stream.backlogBytes() > this.maxLagBytes) {
      throw new TributaryError("TRB-BUS-BUSY", "ingest is behind; nothing was accepted");
    }
    let held = 0;
    const reservation: Reservation = {
      grow: (more) => {
        // One request alone may always pass: its size has a limit of its own.
        if (this.held > held && this.held + more > this.maxInFlightBytes) {
          throw new TributaryError("TRB-BUS-BUSY", "too much is in flight; nothing was accepted");
        }
        held += more;
        this.held += more;
      },
      release: () => {
        this.held -= held;
        held = 0;
      },
    };
    reservation.grow(bytes);
    return reservation;
  }
}
