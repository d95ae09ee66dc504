import type { IncomingMessage, ServerResponse } from "node:http";
import { TributaryError } from "./errors.js";
import { LeastRate } from "./least-rate.js";

export interface Pace {
  readonly minBodyBytesPerSecond: number;
  /** Milliseconds by which a body may fall behind. */
  readonly bodyGraceMs: number;
}

/** Connections cut in one turn of the event loop: a thousand that fall behind together must not hold it up. */
const CUT_AT_ONCE = 4;

interface Watched {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Bytes of the connection that were counted. */
  seen: number;
  /** Bytes it is ahead of the pace; below zero it is too slow. */
  ahead: number;
}

/**
 * Asks bodies to come at a least rate, on every route, also those that are refused and thrown away. Time during which
 * nobody here reads does not count against the sender, nor does time in which this process did not run.
 */
export class BodyPace {
  private readonly open = new Set<Watched>();
  private readonly rate: LeastRate;
  private readonly late = new Set<Watched>();

  constructor({ minBodyBytesPerSecond, bodyGraceMs }: Pace) {
    this.rate = new LeastRate(minBodyBytesPerSecond, bodyGraceMs, 500, (owed) => this.tick(owed));
  }

  /**
   * Whoever reads the body hears TRB-REQ-TOO-SLOW as the request's "error"; where that is nobody any more, or the
   * answer has begun, the connection is cut.
   */
  watch(request: IncomingMessage, response: ServerResponse): void {
    if (request.headers["content-length"] === undefined && !request.headers["transfer-encoding"]) return;
    const watched = { request, response, seen: request.socket.bytesRead, ahead: this.rate.allowance };
    this.open.add(watched);
    request.once("close", () => this.open.delete(watched));
  }

  stop(): void {
    this.rate.stop();
  }

  private tick(owed: number): void {
    for (const watched of this.open) {
      const { request } = watched;
      const { bytesRead } = request.socket;
      const came = bytesRead - watched.seen;
      watched.seen = bytesRead;
      if (request.complete || !request.readableFlowing) continue;
      watched.ahead = this.rate.after(watched.ahead, came, owed);
      // No number at all where a request was made up, without a connection.
      if (!(watched.ahead < 0)) continue;
      if (this.late.add(watched).size === 1) setImmediate(() => this.cut());
    }
  }

  private cut(): void {
    let left = CUT_AT_ONCE;
    for (const watched of this.late) {
      if (left-- === 0) break;
      this.late.delete(watched);
      const { request, response } = watched;
      if (response.headersSent || request.listenerCount("error") === 0) request.socket.destroy();
      else request.emit("error", new TributaryError("TRB-REQ-TOO-SLOW"));
    }
    if (this.late.size > 0) setImmediate(() => this.cut());
  }
}
