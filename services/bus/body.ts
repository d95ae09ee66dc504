import type { IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { TributaryError } from "../base/errors.js";
import type { Reservation } from "./admission.js";

/** What is known of a body before it is read. */
export interface BodyHead {
  readonly gzip: boolean;
  /** As sent; undefined when the sender did not tell. */
  readonly contentLength: number | undefined;
}

/** Errors: TRB-REQ-ENCODING, TRB-REQ-TOO-LARGE; nothing of the body has been read then. */
export function readHead(request: IncomingMessage, maxBytes: number): BodyHead {
  const encoding = request.headers["content-encoding"]?.trim().toLowerCase() ?? "identity";
  if (encoding !== "gzip" && encoding !== "identity") {
    throw new TributaryError("TRB-REQ-ENCODING", "content-encoding: expected gzip or none");
  }
  const length = request.headers["content-length"];
  const contentLength = length === undefined ? undefined : Number(length);
  if (contentLength !== undefined && contentLength > maxBytes) throw tooLarge(maxBytes);
  return { gzip: encoding === "gzip", contentLength };
}

/**
 * The whole body, decoded. Inflating stops as soon as there is more than `maxBytes`; what is read beyond the
 * reservation grows it. Errors: TRB-REQ-TOO-LARGE, TRB-REQ-ENCODING, TRB-BUS-BUSY, TRB-REQ-UNREADABLE (cut short).
 */
export function readBody(
  request: IncomingMessage,
  head: BodyHead,
  maxBytes: number,
  reservation: Reservation,
): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let total = 0;
    let reserved = head.contentLength ?? 0;
    const source: Readable = head.gzip ? request.pipe(createGunzip()) : request;
    let settled = false;
    const end = (error: TributaryError | undefined): void => {
      if (settled) return;
      settled = true;
      if (head.gzip) {
        request.unpipe();
        source.destroy();
      }
      source.off("data", take);
      if (error) {
        // What is still on its way is thrown away unseen, so that the sender gets to read the answer.
        request.resume();
        reject(error);
      } else resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, total));
    };
    const take = (chunk: Buffer): void => {
      total += chunk.length;
      if (total > maxBytes) {
        end(tooLarge(maxBytes));
        return;
      }
      if (total > reserved) {
        try {
          reservation.grow(total - reserved);
          reserved = total;
        } catch (error) {
          end(error as TributaryError);
          return;
        }
      }
      chunks.push(chunk);
    };
    source.on("data", take);
    source.on("end", () => end(undefined));
    if (head.gzip) {
      source.on("error", () =>
        end(new TributaryError("TRB-REQ-ENCODING", "body: expected whole, undamaged gzip")),
      );
    }
    request.on("error", () => end(cutShort()));
    request.on("close", () => {
      if (!request.complete) end(cutShort());
    });
  });
}

const tooLarge = (maxBytes: number) =>
  new TributaryError("TRB-REQ-TOO-LARGE", `body: expected at most ${maxBytes} bytes, decoded`);

const cutShort = () => new TributaryError("TRB-REQ-UNREADABLE", "body: ended before its announced length");
