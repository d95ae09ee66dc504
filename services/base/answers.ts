import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { Readable } from "node:stream";
import type { FastifyReply } from "fastify";
import type { Dismiss } from "./admission.js";
import { LeastRate } from "./least-rate.js";

/** Bytes of an answer that are handed to a connection at once. */
const PIECE_BYTES = 64 * 1024;

/** What is to be told when a connection is gone, by connection: one listener each, however many requests it carries. */
const waiting = new WeakMap<Socket, Set<() => void>>();

/** Calls `done` once, when the answer has left or never will. */
export function onceAnswered(response: ServerResponse, socket: Socket, done: () => void): void {
  const end = () => {
    response.off("close", end).off("finish", end);
    if (waiting.get(socket)?.delete(end) === true) done();
  };
  let ends = waiting.get(socket);
  if (ends === undefined) {
    ends = new Set();
    waiting.set(socket, ends);
    // An answer that stands in line behind another's is not told when its connection goes.
    socket.once("close", () => {
      for (const each of waiting.get(socket) ?? []) each();
    });
  }
  ends.add(end);
  response.once("close", end).once("finish", end);
  if (response.writableFinished || response.closed || socket.destroyed) end();
}

/**
 * Answers with these pieces: `length` bytes, or about so many where that is not `exact`. Many bytes go as fast as they
 * are taken: what nobody has read yet is not in the connection's buffers.
 */
export function sendPieces(
  reply: FastifyReply,
  pieces: Iterable<Buffer>,
  length: number,
  exact = true,
): FastifyReply {
  if (length <= PIECE_BYTES) return reply.send(Buffer.concat([...pieces]));
  if (exact) reply.header("content-length", length);
  return reply.send(Readable.from(cut(pieces), { objectMode: false, highWaterMark: PIECE_BYTES }));
}

function* cut(pieces: Iterable<Buffer>): Generator<Buffer> {
  for (const piece of pieces) {
    for (let at = 0; at < piece.length; at += PIECE_BYTES) yield piece.subarray(at, at + PIECE_BYTES);
  }
}

/** How long an answer may take before it can be given up for others: who reads at all has most of them by then. */
const UNREAD_MS = 1_000;

/** For `Reservation.become`: an answer that is not read is given up with its connection. */
export function giveUpUnread(reply: FastifyReply): Dismiss {
  const since = performance.now();
  return () => {
    if (performance.now() - since < UNREAD_MS) return false;
    reply.raw.destroy();
    return true;
  };
}

export interface AnswerPaceLimits {
  readonly minBodyBytesPerSecond: number;
  /** Milliseconds by which an answer's reader may fall behind. */
  readonly answerGraceMs: number;
}

interface Watched {
  readonly response: ServerResponse;
  /** Bytes of the connection that had left. */
  seen: number;
  /** Bytes its reader is ahead of the pace; below zero it is too slow. */
  ahead: number;
}

/**
 * Asks that answers be read at a least rate, on every route: what nobody reads would occupy memory for ever. Only time
 * during which there is something to read counts.
 */
export class AnswerPace {
  private readonly open = new Set<Watched>();
  private readonly rate: LeastRate;

  constructor({ minBodyBytesPerSecond, answerGraceMs }: AnswerPaceLimits) {
    this.rate = new LeastRate(minBodyBytesPerSecond, answerGraceMs, 1_000, (owed) => this.tick(owed));
  }

  watch(response: ServerResponse, socket: Socket): void {
    const watched = { response, seen: 0, ahead: this.rate.allowance };
    this.open.add(watched);
    onceAnswered(response, socket, () => this.open.delete(watched));
  }

  stop(): void {
    this.rate.stop();
  }

  private tick(owed: number): void {
    for (const watched of this.open) {
      const { socket } = watched.response;
      // Behind another's answer, or nothing to read yet, or a request that was made up.
      if (!socket?.writableLength) continue;
      const left = socket.bytesWritten - socket.writableLength;
      const came = watched.seen === 0 ? 0 : left - watched.seen;
      watched.seen = left;
      watched.ahead = this.rate.after(watched.ahead, came, owed);
      if (watched.ahead < 0) socket.destroy();
    }
  }
}
