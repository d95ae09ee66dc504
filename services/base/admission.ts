import type { TributaryError } from "./errors.js";

/** What an open request occupies beside its body: connection, parser, buffers. */
const REQUEST_BYTES = 16 * 1024;

/** Gives a request up for another's share. False when it cannot be given up just now. */
export type Dismiss = (error: TributaryError) => boolean;

/** Bytes that one request occupies, from the moment it is let in until its answer has left. */
export interface Reservation {
  /** Takes more, for bytes that have arrived or will be needed. Errors: those of the admission. */
  grow(bytes: number): void;
  /** Its bytes from now on, instead of what it held, and how to give it up. Never refused. */
  become(bytes: number, dismiss: Dismiss): void;
  release(): void;
}

interface Held extends Reservation {
  readonly holder: Holder;
  bytes: number;
  /** Sends the request away, while that is possible. */
  dismiss: Dismiss;
}

interface Holder {
  bytes: number;
  readonly open: Set<Held>;
}

/**
 * Keeps the bytes of requests within a limit, by refusing what would exceed it. What counts is what has arrived, not
 * what was announced, and answers until they have left. One holder alone may use all of it; where several want it, none
 * is refused below its share: what others hold above theirs and can give up is given up for it.
 */
export class Admission {
  private readonly holders = new Map<string, Holder>();
  private held = 0;

  /** `refused` makes the error for what is refused or sent away. */
  constructor(
    private readonly maxBytes: number,
    private readonly refused: () => TributaryError,
  ) {}

  get inFlightBytes(): number {
    return this.held;
  }

  /**
   * Lets a request of this holder in, before any of it is read. `dismiss` may be called at any time; when that gives it
   * up, it has released what it held.
   */
  enter(name: string, dismiss: Dismiss): Reservation {
    const holder = this.holders.get(name) ?? { bytes: 0, open: new Set() };
    this.holders.set(name, holder);
    const request: Held = {
      holder,
      bytes: 0,
      dismiss,
      grow: (bytes) => this.grow(request, bytes),
      become: (bytes, given) => {
        if (!holder.open.has(request)) return;
        const more = REQUEST_BYTES + bytes - request.bytes;
        request.bytes += more;
        holder.bytes += more;
        this.held += more;
        request.dismiss = given;
      },
      release: () => {
        this.held -= request.bytes;
        holder.bytes -= request.bytes;
        request.bytes = 0;
        if (holder.open.delete(request) && holder.open.size === 0) this.holders.delete(name);
      },
    };
    holder.open.add(request);
    try {
      request.grow(REQUEST_BYTES);
    } catch (error) {
      request.release();
      throw error;
    }
    return request;
  }

  private grow(request: Held, bytes: number): void {
    const { holder } = request;
    if (!holder.open.has(request)) throw this.refused();
    if (this.held + bytes > this.maxBytes) {
      const share = this.maxBytes / this.holders.size;
      // One request alone may always pass: its size has a limit of its own.
      const alone = this.held === request.bytes;
      if (!alone && holder.bytes + bytes > share) throw this.refused();
      // What others hold beyond their share and cannot give up is being worked on, and soon gone.
      if (!alone) this.makeRoom(bytes, share);
    }
    request.bytes += bytes;
    holder.bytes += bytes;
    this.held += bytes;
  }

  /** Sends away what can be given up, of those who hold more than `share`, the largest holder first. */
  private makeRoom(bytes: number, share: number): void {
    for (const holder of [...this.holders.values()].sort((a, b) => b.bytes - a.bytes)) {
      for (const request of [...holder.open].sort((a, b) => b.bytes - a.bytes)) {
        if (this.held + bytes <= this.maxBytes || holder.bytes <= share) break;
        if (request.dismiss(this.refused())) request.release();
      }
    }
  }
}
