import type { Readable } from "node:stream";
import { PROTOBUF } from "../../../clients/producer/src/bus-client.js";
import { TributaryError } from "../../base/errors.js";
import { EventSender, inParallel, NDJSON, type Receipt } from "./event-sender.js";
import { describeInput, fileBatches, type LineBatch, streamBatches } from "./ndjson-batches.js";
import { ResumeFile, type ResumePoint } from "./resume-point.js";

export interface PublishTarget {
  readonly url: string;
  readonly token: string;
  /** Requests in flight; order does not matter to the result. */
  readonly concurrency?: number;
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds without success after which retrying ends. */
  readonly patienceMs?: number;
}

export interface PublishOptions extends PublishTarget {
  /** A file, "-" for standard input, or a stream; gzip is told by its first bytes. */
  readonly input: string | Readable;
  /** Lines a request; 1 MiB is the limit whatever it says. */
  readonly batch?: number;
  /** Go on where an earlier run was stopped (default). False starts over. */
  readonly resume?: boolean;
  /** Where the resume point is kept (default: beside the file). */
  readonly resumeFile?: string | undefined;
  readonly onProgress?: (progress: PublishProgress) => void;
}

export interface PublishProgress {
  /** Bytes of the input as stored; the total is undefined for streams. */
  readonly bytes: number;
  readonly totalBytes: number | undefined;
  /** Of this run. */
  readonly events: number;
}

export interface LineRejection {
  /** From 1. */
  readonly line: number;
  readonly code: string;
  readonly message: string;
}

export interface PublishSummary {
  /** Events of the whole input, earlier runs included. */
  readonly accepted: number;
  readonly rejected: number;
  /** Lines that an earlier run had published. */
  readonly resumedAfterLines: number;
  /** The first rejections of this run. */
  readonly rejections: readonly LineRejection[];
  readonly elapsedMs: number;
  /** Events of this run. */
  readonly eventsPerSecond: number;
  /** True when the signal ended it early. */
  readonly interrupted: boolean;
  /** Why it ended early, otherwise. */
  readonly failure: TributaryError | undefined;
  /** Where a next run finds how far this one came; undefined when it came to the end or cannot go on. */
  readonly resumeFile: string | undefined;
}

const BATCH_LINES = 500;
const BATCH_BYTES = 1024 * 1024;
const CONCURRENCY = 4;
const SHOWN_REJECTIONS = 20;

/**
 * Publishes events in JSON, one a line. What was answered is remembered, so that a run that is stopped or fails goes
 * on where it was; events that were sent but not answered are sent again, which does no harm.
 * Errors before anything was sent: TRB-CLI-SOURCE, TRB-CLI-USAGE. Later ones are in the summary.
 */
export async function publishFile(options: PublishOptions): Promise<PublishSummary> {
  const sender = senderOf(options);
  try {
    return await new FilePublisher(options, sender).run();
  } finally {
    sender.close();
  }
}

class FilePublisher {
  private readonly options: PublishOptions;
  private readonly sender: EventSender;
  private readonly rejections: LineRejection[] = [];
  /** Receipts of batches that wait for an earlier one, by number. */
  private readonly waiting = new Map<number, { batch: LineBatch; accepted: number; rejected: number }>();
  private resume: ResumeFile | undefined;
  private point: ResumePoint = { offset: { lines: 0, bytes: 0 }, accepted: 0, rejected: 0 };
  /** Answered, whether or not everything before was. */
  private accepted = 0;
  private rejected = 0;
  /** Events of earlier runs. */
  private before = 0;
  private next = 0;
  private totalBytes: number | undefined;
  private bytes = 0;

  constructor(options: PublishOptions, sender: EventSender) {
    this.options = options;
    this.sender = sender;
  }

  async run(): Promise<PublishSummary> {
    const { signal, concurrency = CONCURRENCY } = this.options;
    const batches = await this.open();
    const before = this.point;
    this.accepted = before.accepted;
    this.rejected = before.rejected;
    this.before = before.accepted + before.rejected;
    const started = performance.now();
    let failure: unknown;
    try {
      await inParallel(untilAborted(batches, signal), concurrency, (batch, index) =>
        this.publish(batch, index),
      );
    } catch (error) {
      failure = error;
    }
    const interrupted = signal?.aborted === true;
    if (failure !== undefined && !interrupted && !(failure instanceof TributaryError)) throw failure;
    const elapsedMs = performance.now() - started;
    const events = this.accepted + this.rejected - this.before;
    const complete = failure === undefined && !interrupted;
    return {
      accepted: this.accepted,
      rejected: this.rejected,
      resumedAfterLines: before.offset.lines,
      rejections: this.rejections.sort((a, b) => a.line - b.line),
      elapsedMs,
      eventsPerSecond: elapsedMs > 0 ? Math.round((events / elapsedMs) * 1000) : 0,
      interrupted,
      failure: interrupted ? undefined : (failure as TributaryError | undefined),
      resumeFile: await this.keepPoint(complete),
    };
  }

  private async open(): Promise<AsyncIterable<LineBatch>> {
    const { input, batch = BATCH_LINES, resume = true } = this.options;
    const limits = { lines: Math.max(1, batch), bytes: BATCH_BYTES };
    if (typeof input !== "string" || input === "-") {
      const stream = typeof input === "string" ? process.stdin : input;
      // A pipe may have nothing to say for hours.
      this.options.signal?.addEventListener("abort", () => stream.destroy(), { once: true });
      return streamBatches(stream, limits);
    }
    const file = await describeInput(input);
    this.totalBytes = file.size;
    const path = this.options.resumeFile ?? `${input}.tributary-resume`;
    this.resume = new ResumeFile(path, file, this.sender.origin);
    if (resume) this.point = (await this.resume.load()) ?? this.point;
    return fileBatches(file, this.point.offset, limits);
  }

  private async publish(batch: LineBatch, index: number): Promise<void> {
    const message = "the line is longer than any request may be";
    for (const line of batch.tooLong) this.reject({ line, code: "TRB-REQ-TOO-LARGE", message });
    const total = { batch, accepted: 0, rejected: batch.tooLong.length };
    for await (const receipt of this.send(batch.body, batch.lineNumbers)) {
      total.accepted += receipt.accepted;
      total.rejected += receipt.rejected;
    }
    this.accepted += total.accepted;
    this.rejected += total.rejected;
    this.waiting.set(index, total);
    for (let done = this.waiting.get(this.next); done; done = this.waiting.get(this.next)) {
      this.waiting.delete(this.next++);
      this.point = {
        offset: done.batch.end,
        accepted: this.point.accepted + done.accepted,
        rejected: this.point.rejected + done.rejected,
      };
      this.bytes = done.batch.storedBytes;
      this.resume?.reached(this.point);
    }
    this.options.onProgress?.({
      bytes: this.bytes,
      totalBytes: this.totalBytes,
      events: this.accepted + this.rejected - this.before,
    });
  }

  /** Sends lines; halves them as long as the server finds them too much. A single line that is, is rejected. */
  private async *send(body: Buffer, lineNumbers: readonly number[]): AsyncGenerator<Receipt> {
    if (lineNumbers.length === 0) return;
    try {
      const receipt = await this.sender.send(NDJSON, body);
      for (const { index, code, message } of receipt.rejections) {
        this.reject({ line: lineNumbers[index] ?? 0, code, message });
      }
      yield receipt;
    } catch (error) {
      if (!(error instanceof TributaryError) || error.status !== 413) throw error;
      if (lineNumbers.length === 1) {
        this.reject({ line: lineNumbers[0]!, code: error.code, message: error.message });
        yield { accepted: 0, rejected: 1, rejections: [] };
        return;
      }
      const middle = lineNumbers.length >> 1;
      let at = 0;
      for (let line = 0; line < middle; line++) at = body.indexOf(0x0a, at) + 1;
      yield* this.send(body.subarray(0, at), lineNumbers.slice(0, middle));
      yield* this.send(body.subarray(at), lineNumbers.slice(middle));
    }
  }

  /** Keeps the first ones by line, for batches are answered in any order. */
  private reject(rejection: LineRejection): void {
    this.rejections.push(rejection);
    if (this.rejections.length <= SHOWN_REJECTIONS) return;
    const last = this.rejections.reduce(
      (most, each, at, all) => (each.line > all[most]!.line ? at : most),
      0,
    );
    this.rejections.splice(last, 1);
  }

  private async keepPoint(complete: boolean): Promise<string | undefined> {
    if (this.resume === undefined) return undefined;
    if (complete) {
      await this.resume.remove();
      return undefined;
    }
    if (this.next > 0) this.resume.reached(this.point);
    const saved = await this.resume.save();
    return saved && this.point.offset.lines > 0 ? this.resume.path : undefined;
  }
}

export interface BodiesSummary {
  readonly accepted: number;
  readonly rejected: number;
  readonly requests: number;
  readonly bytes: number;
  readonly elapsedMs: number;
  /** Code → number of rejected events. */
  readonly rejectedByCode: Readonly<Record<string, number>>;
}

/**
 * Publishes PublishRequest bodies as they come. Errors: the server's code, TRB-CLI-UNREACHABLE, TRB-CLI-USAGE; the
 * signal's reason.
 */
export async function publishBodies(
  target: PublishTarget & {
    readonly bodies: AsyncIterable<{ readonly bytes: Buffer }> | Iterable<{ readonly bytes: Buffer }>;
    /** Called once a body's accepted events are durable. */
    readonly onAnswer?: (receipt: Receipt) => void;
  },
): Promise<BodiesSummary> {
  const sender = senderOf(target);
  const rejectedByCode: Record<string, number> = {};
  const sum = { accepted: 0, rejected: 0, requests: 0, bytes: 0 };
  const started = performance.now();
  try {
    await inParallel(target.bodies, target.concurrency ?? CONCURRENCY, async ({ bytes }) => {
      target.signal?.throwIfAborted();
      const receipt = await sender.send(PROTOBUF, bytes);
      sum.accepted += receipt.accepted;
      sum.rejected += receipt.rejected;
      sum.requests++;
      sum.bytes += bytes.length;
      for (const { code } of receipt.rejections) rejectedByCode[code] = (rejectedByCode[code] ?? 0) + 1;
      target.onAnswer?.(receipt);
    });
  } finally {
    sender.close();
  }
  return { ...sum, elapsedMs: performance.now() - started, rejectedByCode };
}

const senderOf = ({ concurrency = CONCURRENCY, ...target }: PublishTarget): EventSender =>
  new EventSender({ ...target, connections: Math.max(1, concurrency) });

async function* untilAborted<T>(items: AsyncIterable<T>, signal: AbortSignal | undefined): AsyncGenerator<T> {
  for await (const item of items) {
    if (signal?.aborted) return;
    yield item;
  }
}
