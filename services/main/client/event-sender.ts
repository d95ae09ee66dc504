import { setTimeout as sleep } from "node:timers/promises";
import { BusClient, unreachable } from "../../../clients/producer/src/bus-client.js";
import type { ProducerError } from "../../../clients/producer/src/errors.js";
import { pauseMs } from "../../../clients/producer/src/pause.js";
import { CODES, type Code } from "../../base/codes.js";
import { TributaryError } from "../../base/errors.js";
import { encodeRequest } from "../../contracts/encode-event.js";
import { frames } from "../../contracts/envelope.js";
import { lines } from "../../contracts/json-body.js";
import { baseUrl, SILENCE_MS } from "./http-client.js";

/** What became of one request, its events counted from 0. */
export interface Receipt {
  readonly accepted: number;
  readonly rejected: number;
  readonly rejections: readonly Rejection[];
}

export interface Rejection {
  readonly index: number;
  readonly code: string;
  readonly message: string;
}

export interface SenderOptions {
  readonly url: string;
  readonly token: string;
  readonly connections: number;
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds without success after which retrying ends. */
  readonly patienceMs?: number | undefined;
}

export const NDJSON = "application/x-ndjson";

/** Without a single success for so long, retrying ends. */
const PATIENCE_MS = 120_000;

/**
 * Posts request bodies to /v1/events, and again while that can help: 408, 429 and 5xx after the pause asked for, lost
 * connections once the server has been met, and of an answered request those events alone that may yet be accepted, in
 * their order. An event sent twice does no harm.
 */
export class EventSender {
  /** Scheme, host and port: what tells servers apart. */
  readonly origin: string;
  private readonly bus: BusClient;
  private readonly signal: AbortSignal | undefined;
  private readonly patienceMs: number;
  private lastSuccess = performance.now();
  private met = false;

  /** Errors: TRB-CLI-USAGE when `url` is no base URL. */
  constructor({ url, token, connections, signal, patienceMs = PATIENCE_MS }: SenderOptions) {
    this.origin = baseUrl(url).origin;
    this.bus = new BusClient({ url, token, connections, silenceMs: SILENCE_MS });
    this.signal = signal;
    this.patienceMs = patienceMs;
  }

  /** Errors: the server's code; TRB-CLI-UNREACHABLE; the signal's reason when it aborts between two attempts. */
  async send(contentType: string, body: Buffer): Promise<Receipt> {
    const since = performance.now();
    const settled = { accepted: 0, rejected: 0, rejections: [] as Rejection[] };
    let rest = body;
    /** Where the events of `rest` stand in `body`; undefined while it is all of them. */
    let places: readonly number[] | undefined;
    for (let attempt = 1; ; attempt++) {
      const outcome = await this.bus.publish(contentType, rest, undefined);
      if (outcome.kind === "refused" || outcome.kind === "too-large") throw this.failure(outcome.error);
      let failure: TributaryError;
      if (outcome.kind === "later") {
        failure = this.failure(outcome.error);
        this.met ||= outcome.status !== undefined;
      } else if (outcome.answer.accepted + outcome.answer.rejected !== countOf(contentType, rest)) {
        // Whatever says so little with 200 is no bus: what it is silent about has not been taken.
        failure = this.failure(
          unreachable("expected a PublishResponse for each event, found something else"),
        );
      } else {
        this.met = true;
        const { answer } = outcome;
        settled.accepted += answer.accepted;
        settled.rejected += answer.rejected;
        const again: number[] = [];
        let reason: TributaryError | undefined;
        for (const [i, result] of answer.rejected === 0 ? [] : answer.results().entries()) {
          if (result.accepted) continue;
          const { code, message, retryable } = result;
          if (!retryable) settled.rejections.push({ index: places?.[i] ?? i, code, message });
          else {
            again.push(i);
            reason ??= laterFor(code, message);
          }
        }
        settled.rejected -= again.length;
        if (again.length < answer.accepted + answer.rejected) {
          this.lastSuccess = performance.now();
          attempt = 1;
        }
        if (reason === undefined) {
          settled.rejections.sort((a, b) => a.index - b.index);
          return settled;
        }
        rest = pick(contentType, rest, again);
        places = again.map((index) => places?.[index] ?? index);
        failure = reason;
      }
      const waited = performance.now() - Math.max(since, this.lastSuccess);
      if (!this.met || waited > this.patienceMs) throw failure;
      const pause = pauseMs(attempt, outcome.retryAfterMs);
      await sleep(pause, undefined, this.signal && { signal: this.signal });
    }
  }

  close(): void {
    this.bus.close();
  }

  /** The failure as the error it was on the server. */
  private failure({ code, message, cause }: ProducerError): TributaryError {
    if (code in CODES) return new TributaryError(code as Code, message, { cause });
    return new TributaryError("TRB-CLI-UNREACHABLE", `${this.origin}: ${message}`, { cause });
  }
}

const linesOf = (body: Buffer) => [...lines(body)].filter((line) => line !== undefined);

/** Events of a body. */
const countOf = (contentType: string, body: Buffer): number =>
  contentType === NDJSON ? linesOf(body).length : frames(body)!.count;

/** A body of the same type with these events alone, in their order. */
function pick(contentType: string, body: Buffer, indexes: readonly number[]): Buffer {
  if (contentType === NDJSON) {
    const found = linesOf(body);
    return Buffer.from(indexes.map((index) => `${body.toString("utf8", ...found[index]!)}\n`).join(""));
  }
  const { starts, ends } = frames(body)!;
  return encodeRequest(indexes.map((index) => body.subarray(starts[index], ends[index])));
}

/** What is thrown when waiting has not helped; a code of a later version reads as a busy bus. */
const laterFor = (code: string, message: string): TributaryError =>
  new TributaryError(code in CODES && CODES[code as Code].retry ? (code as Code) : "TRB-BUS-BUSY", message);

/**
 * Works on up to `concurrency` items at a time, taken in order. After a failure nothing new is begun; what is in
 * flight ends first, then the failure is thrown.
 */
export async function inParallel<T>(
  items: AsyncIterable<T> | Iterable<T>,
  concurrency: number,
  work: (item: T, index: number) => Promise<void>,
): Promise<void> {
  const inFlight = new Set<Promise<void>>();
  const failures: unknown[] = [];
  let index = 0;
  try {
    for await (const item of items) {
      if (failures.length > 0) break;
      const task = work(item, index++)
        .catch((error: unknown) => void failures.push(error))
        .finally(() => inFlight.delete(task));
      inFlight.add(task);
      if (inFlight.size >= concurrency) await Promise.race(inFlight);
      if (failures.length > 0) break;
    }
  } finally {
    await Promise.all(inFlight);
  }
  if (failures.length > 0) throw failures[0];
}
