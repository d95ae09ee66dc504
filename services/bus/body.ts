import type { IncomingMessage } from "node:http";
import { createGunzip, type Gunzip } from "node:zlib";
import { TributaryError } from "../base/errors.js";
import type { Reservation } from "./admission.js";

/** One piece of inflated output: each costs a turn of the event loop. */
const PIECE_BYTES = 64 * 1024;

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
  private readonly gunzip: Gunzip | undefined;
  private chunks: Buffer[] = [];
  private total = 0;
  private reservation: Reservation | undefined;
  private settle: { resolve(body: readonly Buffer[]): void; reject(error: Error): void } | undefined;

  constructor(request: IncomingMessage, gzip: boolean, maxBytes: number) {
    this.request = request;
    this.maxBytes = maxBytes;
    this.gunzip = gzip ? createGunzip({ chunkSize: PIECE_BYTES }) : undefined;
  }

  /**
   * The body in pieces. Errors: TRB-REQ-TOO-LARGE, TRB-REQ-ENCODING, TRB-BUS-BUSY, TRB-REQ-TOO-SLOW,
   * TRB-REQ-UNREADABLE (cut short).
   */
  read(reservation: Reservation): Promise<readonly Buffer[]> {
    this.reservation = reservation;
    const { request, gunzip } = this;
    return new Promise((resolve, reject) => {
      this.settle = { resolve, reject };
      if (gunzip) {
        request.on("data", (chunk: Buffer) => {
          if (!gunzip.destroyed && !gunzip.write(chunk)) request.pause();
        });
        request.on("end", () => gunzip.end());
        gunzip.on("drain", () => request.resume());
        gunzip.on("data", this.take);
        gunzip.on("end", this.finish);
        gunzip.on("error", () =>
          this.stop(new TributaryError("TRB-REQ-ENCODING", "body: expected whole, undamaged gzip")),
        );
      } else {
        request.on("data", this.take);
        request.on("end", this.finish);
      }
      // A server that finds the sender too slow says so by this event.
      request.on("error", (error) => this.stop(error instanceof TributaryError ? error : cutShort()));
      request.on("close", () => {
        if (!request.complete) this.stop(cutShort());
      });
      // It may have gone while its token was looked at: then no event comes any more.
      if (request.destroyed) this.stop(cutShort());
    });
  }

  /** Ends reading with this error. What is still on its way is thrown away unseen, so that the sender reads the answer. */
  readonly stop = (error: TributaryError): void => {
    const { settle, request, gunzip } = this;
    if (settle === undefined) return;
    this.settle = undefined;
    this.chunks = [];
    request.off("data", this.take);
    gunzip?.destroy();
    request.resume();
    settle.reject(error);
  };

  private readonly take = (chunk: Buffer): void => {
    if (this.settle === undefined) return;
    this.total += chunk.length;
    if (this.total > this.maxBytes) {
      this.stop(tooLarge(this.maxBytes));
      return;
    }
    try {
      this.reservation?.grow(chunk.length);
    } catch (error) {
      this.stop(error as TributaryError);
      return;
    }
    this.chunks.push(chunk);
  };

  private readonly finish = (): void => {
    const { settle } = this;
    this.settle = undefined;
    settle?.resolve(this.chunks);
  };
}

const tooLarge = (maxBytes: number) =>
  new TributaryError("TRB-REQ-TOO-LARGE", `body: expected at most ${maxBytes} bytes, decoded`);

const cutShort = () => new TributaryError("TRB-REQ-UNREADABLE", "body: ended before its announced length");
