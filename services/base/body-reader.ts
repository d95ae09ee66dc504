import type { IncomingMessage } from "node:http";
import { createGunzip, type Gunzip } from "node:zlib";
import type { Reservation } from "./admission.js";
import { TributaryError } from "./errors.js";

/** One piece of inflated output: each costs a turn of the event loop. */
const PIECE_BYTES = 64 * 1024;
/** What inflating one body occupies: a piece of output, the window, the decoder's state. */
const INFLATING_BYTES = PIECE_BYTES + 48 * 1024;

/** Errors: TRB-REQ-ENCODING, TRB-REQ-TOO-LARGE; nothing of the body has been read then. */
export function isGzip(request: IncomingMessage, maxBytes: number): boolean {
  const encoding = request.headers["content-encoding"]?.trim().toLowerCase() ?? "identity";
  if (encoding !== "gzip" && encoding !== "identity") {
    throw new TributaryError("TRB-REQ-ENCODING", "content-encoding: expected gzip or none");
  }
  if (Number(request.headers["content-length"]) > maxBytes) throw tooLarge(maxBytes);
  return encoding === "gzip";
}

/**
 * Reads one body, inflating it on another thread where it is gzip. What has arrived grows the reservation; inflating
 * stops as soon as there is more than `maxBytes`.
 */
export class BodyReader {
  private readonly request: IncomingMessage;
  private readonly maxBytes: number;
  private readonly gzip: boolean;
  private gunzip: Gunzip | undefined;
  private chunks: Buffer[] = [];
  private total = 0;
  private reservation: Reservation | undefined;
  private settle: { resolve(body: readonly Buffer[]): void; reject(error: Error): void } | undefined;

  constructor(request: IncomingMessage, gzip: boolean, maxBytes: number) {
    this.request = request;
    this.maxBytes = maxBytes;
    this.gzip = gzip;
  }

  /**
   * The body in pieces. Errors: TRB-REQ-TOO-LARGE, TRB-REQ-ENCODING, TRB-REQ-TOO-SLOW, TRB-REQ-UNREADABLE (cut short),
   * and those of the reservation.
   */
  read(reservation: Reservation): Promise<readonly Buffer[]> {
    this.reservation = reservation;
    const { request } = this;
    return new Promise((resolve, reject) => {
      this.settle = { resolve, reject };
      request.on("data", this.gzip ? this.inflate : this.take);
      request.on("end", () => {
        if (this.gzip) this.inflater()?.end();
        else this.finish();
      });
      // A server that finds the sender too slow says so by this event.
      request.on("error", (error) => this.stop(error instanceof TributaryError ? error : cutShort()));
      request.on("close", () => {
        if (!request.complete) this.stop(cutShort());
      });
      // It may have gone while its token was looked at: then no event comes any more.
      if (request.destroyed) this.stop(cutShort());
    });
  }

  /**
   * Ends reading with this error. What is still on its way is thrown away unseen, so that the sender reads the answer;
   * meanwhile nothing is held for it.
   */
  readonly stop = (error: TributaryError): boolean => {
    const { settle, request } = this;
    if (settle === undefined) return false;
    this.settle = undefined;
    this.chunks = [];
    request.off("data", this.take).off("data", this.inflate);
    this.gunzip?.destroy();
    this.reservation?.release();
    request.resume();
    settle.reject(error);
    return true;
  };

  private readonly inflate = (chunk: Buffer): void => {
    if (this.inflater()?.write(chunk) === false) this.request.pause();
  };

  /** Made with the first bytes: a head without a body costs nothing. Undefined where there is no room for it. */
  private inflater(): Gunzip | undefined {
    if (this.gunzip !== undefined || !this.reserve(INFLATING_BYTES)) return this.gunzip;
    const gunzip = createGunzip({ chunkSize: PIECE_BYTES });
    gunzip.on("drain", () => this.request.resume());
    gunzip.on("data", this.take);
    gunzip.on("end", this.finish);
    gunzip.on("error", () =>
      this.stop(new TributaryError("TRB-REQ-ENCODING", "body: expected whole, undamaged gzip")),
    );
    this.gunzip = gunzip;
    return gunzip;
  }

  /** False when it was refused, and the body with it. */
  private reserve(bytes: number): boolean {
    try {
      this.reservation?.grow(bytes);
      return true;
    } catch (error) {
      this.stop(error as TributaryError);
      return false;
    }
  }

  private readonly take = (chunk: Buffer): void => {
    if (this.settle === undefined) return;
    this.total += chunk.length;
    if (this.total > this.maxBytes) {
      this.stop(tooLarge(this.maxBytes));
      return;
    }
    if (this.reserve(chunk.length)) this.chunks.push(chunk);
  };

  private readonly finish = (): void => {
    const { settle, chunks } = this;
    this.settle = undefined;
    // The request lives on until it is answered; its body need not.
    this.chunks = [];
    settle?.resolve(chunks);
  };
}

const tooLarge = (maxBytes: number) =>
  new TributaryError("TRB-REQ-TOO-LARGE", `body: expected at most ${maxBytes} bytes, decoded`);

const cutShort = () => new TributaryError("TRB-REQ-UNREADABLE", "body: ended before its announced length");
