import { setTimeout as sleep } from "node:timers/promises";
import protobuf from "protobufjs";
import { CODES, type Code } from "../../base/codes.js";
import { TributaryError } from "../../base/errors.js";
import { encodeRequest } from "../../contracts/encode-event.js";
import { frames } from "../../contracts/envelope.js";
import { lines } from "../../contracts/json-body.js";
import { type Answer, failureOf, type HttpClient } from "./http-client.js";

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
  /** Whether it may be accepted when it is sent again. In what `send` resolves to, none is. */
  readonly retryable: boolean;
}

export const PROTOBUF = "application/x-protobuf";
export const NDJSON = "application/x-ndjson";

/** Without a single success for so long, retrying ends. */
const PATIENCE_MS = 120_000;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
/** Answers after which the same request may do better. */
const AGAIN = new Set([408, 429, 503]);

/**
 * Posts request bodies to /v1/events, and again while that can help: 408, 429 and 503 after the pause asked for, lost
 * connections once the server has been met, and of an answered request those events alone that may yet be accepted, in
 * their order. An event sent twice does no harm.
 */
export class EventSender {
  private readonly client: HttpClient;
  private readonly signal: AbortSignal | undefined;
  private readonly patienceMs: number;
  private lastSuccess = performance.now();
  private met = false;

  constructor(client: HttpClient, options: { signal?: AbortSignal | undefined; patienceMs?: number } = {}) {
    this.client = client;
    this.signal = options.signal;
    this.patienceMs = options.patienceMs ?? PATIENCE_MS;
  }

  /** Errors: the server's code; TRB-CLI-UNREACHABLE; the signal's reason when it aborts between two attempts. */
  async send(contentType: string, body: Buffer): Promise<Receipt> {
    const since = performance.now();
    const settled = { accepted: 0, rejected: 0, rejections: [] as Rejection[] };
    let rest = body;
    /** Where the events of `rest` stand in `body`; undefined while it is all of them. */
    let places: readonly number[] | undefined;
    for (let attempt = 0; ; attempt++) {
      let { failure, answer } = await this.try(contentType, rest);
      if (failure === undefined) {
        this.met = true;
        const receipt = receiptOf(answer!);
        const again = receipt.rejections.filter(({ retryable }) => retryable);
        settled.accepted += receipt.accepted;
        settled.rejected += receipt.rejected - again.length;
        for (const rejection of receipt.rejections) {
          const index = places?.[rejection.index] ?? rejection.index;
          if (!rejection.retryable) settled.rejections.push({ ...rejection, index });
        }
        if (again.length < receipt.accepted + receipt.rejected) {
          this.lastSuccess = performance.now();
          attempt = 0;
        }
        if (again.length === 0) {
          settled.rejections.sort((a, b) => a.index - b.index);
          return settled;
        }
        const indexes = again.map(({ index }) => index);
        rest = pick(contentType, rest, indexes);
        places = indexes.map((index) => places?.[index] ?? index);
        failure = failureFor(again[0]!);
      }
      this.met ||= failure.code !== "TRB-CLI-UNREACHABLE";
      const helps = this.met && AGAIN.has(failure.status);
      const waited = performance.now() - Math.max(since, this.lastSuccess);
      if (!helps || waited > this.patienceMs) throw failure;
      await sleep(pause(attempt, answer), undefined, this.signal && { signal: this.signal });
    }
  }

  private async try(
    contentType: string,
    body: Buffer,
  ): Promise<{ failure?: TributaryError; answer?: Answer }> {
    try {
      const answer = await this.client.post("/v1/events", contentType, body);
      if (answer.status === 200) return { answer };
      return { failure: failureOf(answer), answer };
    } catch (error) {
      if (error instanceof TributaryError) return { failure: error };
      throw error;
    }
  }
}

/** As long as the server asks for, else longer each time; never the same for two clients. */
function pause(attempt: number, answer: Answer | undefined): number {
  const asked = Number(answer?.headers["retry-after"]) * 1000;
  const jitter = 1 + Math.random() * 0.25;
  if (asked > 0) return Math.min(asked, 60_000) * jitter;
  return Math.min(FIRST_PAUSE_MS * 2 ** attempt, LONGEST_PAUSE_MS) * jitter;
}

/** A body of the same type with these events alone, in their order. */
function pick(contentType: string, body: Buffer, indexes: readonly number[]): Buffer {
  if (contentType === NDJSON) {
    const found = [...lines(body)].filter((line) => line !== undefined);
    return Buffer.from(indexes.map((index) => `${body.toString("utf8", ...found[index]!)}\n`).join(""));
  }
  const { starts, ends } = frames(body)!;
  return encodeRequest(indexes.map((index) => body.subarray(starts[index], ends[index])));
}

/** What is thrown when waiting has not helped; a code of a later version reads as a busy bus. */
const failureFor = ({ code, message }: Rejection): TributaryError =>
  new TributaryError(
    code in CODES && AGAIN.has(CODES[code as Code].status) ? (code as Code) : "TRB-BUS-BUSY",
    message,
  );

function receiptOf(answer: Answer): Receipt {
  try {
    return answer.headers["content-type"]?.startsWith(PROTOBUF)
      ? fromProtobuf(answer.body)
      : fromJson(answer.body);
  } catch (cause) {
    throw new TributaryError("TRB-CLI-UNREACHABLE", "expected a PublishResponse, found something else", {
      cause,
    });
  }
}

function fromJson(body: Buffer): Receipt {
  const response = JSON.parse(body.toString("utf8")) as {
    readonly results?: readonly {
      accepted?: boolean;
      code?: string;
      message?: string;
      retryable?: boolean;
    }[];
    readonly accepted?: number;
    readonly rejected?: number;
  };
  const rejections: Rejection[] = [];
  for (const [index, { accepted, code = "", message = "", retryable = false }] of (
    response.results ?? []
  ).entries()) {
    if (!accepted) rejections.push({ index, code, message, retryable });
  }
  return { accepted: response.accepted ?? 0, rejected: response.rejected ?? 0, rejections };
}

/** Reads the counts, and of the results only those of a request that has rejections. */
function fromProtobuf(body: Buffer): Receipt {
  const reader = protobuf.Reader.create(body);
  const results: Uint8Array[] = [];
  let accepted = 0;
  let rejected = 0;
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    if (tag === 10) results.push(reader.bytes());
    else if (tag === 16) accepted = reader.int32();
    else if (tag === 24) rejected = reader.int32();
    else reader.skipType(tag & 7);
  }
  return { accepted, rejected, rejections: rejected === 0 ? [] : results.flatMap(rejectionOf) };
}

function rejectionOf(bytes: Uint8Array, index: number): readonly Rejection[] {
  const reader = protobuf.Reader.create(bytes);
  let [code, message, accepted, retryable] = ["", "", false, false];
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    if (tag === 8) accepted = reader.bool();
    else if (tag === 34) code = reader.string();
    else if (tag === 42) message = reader.string();
    else if (tag === 48) retryable = reader.bool();
    else reader.skipType(tag & 7);
  }
  return accepted ? [] : [{ index, code, message, retryable }];
}

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
