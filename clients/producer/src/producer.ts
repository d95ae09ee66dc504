import { setMaxListeners } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { BusClient, type Outcome, PROTOBUF } from "./bus-client.js";
import { EntityChains } from "./entity-chains.js";
import { Entry, type Receipt } from "./entry.js";
import { type ProducerCode, ProducerError } from "./errors.js";
import { type ChangeEvent, encodeEvent, encodeRequest, withReference } from "./event.js";
import { type ProducerOptions, type Settings, settingsOf } from "./options.js";
import { pauseMs } from "./pause.js";
import { PayloadUploads, Refused } from "./payload-uploads.js";
import { ReadyQueue } from "./ready-queue.js";

export interface CloseReport {
  /** What was sent before `close` and not accepted by its end, and why: the objects that `send` was given. */
  readonly undelivered: readonly { readonly event: ChangeEvent; readonly error: ProducerError }[];
}

/** Uploads at a time. */
const UPLOADS = 2;
/** What a bus says of an event whose payload is not where it looks: it was collected, or the bus has another store now. */
const PAYLOAD_MISSING = "TRB-EVENT-PAYLOAD-MISSING";
/** What it says of one that may be in the stream all the same. */
const MAY_HAVE_LANDED = new Set(["TRB-BUS-STREAM-DOWN", "TRB-INTERNAL"]);

/**
 * Publishes change events in batches and keeps at it until each is accepted, refused for good, or past its deadline.
 *
 * - Durability: the promise of `send` resolves when the bus has made the event durable.
 * - Order: an event leaves only when every earlier one of its entity (tenant, type, id) is settled, so that a retry
 *   never lands an older event behind a newer one. Events of different entities have no order.
 * - At least once: a request whose answer is lost is sent again. The same event twice does no harm.
 * - Memory: bounded by `maxBufferedBytes`, beside what the callers of waiting `send`s hold themselves.
 */
export class Producer {
  private readonly settings: Settings;
  private readonly bus: BusClient;
  private readonly payloads: PayloadUploads;
  private readonly abort = new AbortController();
  private readonly chains = new EntityChains();
  private readonly ready = new ReadyQueue();
  /** Batches that were too large for the bus, in halves. */
  private readonly halves: Entry[][] = [];
  /** Every unsettled entry, in the order of `send`, which is that of deadlines. */
  private readonly open = new Set<Entry>();
  private readonly outside: Entry[] = [];
  private readonly toUpload: Entry[] = [];
  private uploading = 0;
  private readonly room = new Set<() => void>();
  private bufferedBytes = 0;
  private inFlight = 0;
  /** Requests in a row that ended without a word on their events. */
  private failures = 0;
  private holdUntil = 0;
  /** Callers of `flush` and `close` at this moment: nothing lingers. */
  private hurried = 0;
  private pumpTimer: NodeJS.Timeout | undefined;
  private deadlineTimer: NodeJS.Timeout | undefined;
  private closed: Promise<CloseReport> | undefined;

  /** Errors: TRB-PRODUCER-OPTIONS. */
  constructor(options: ProducerOptions) {
    this.settings = settingsOf(options);
    const { url, token, gzip, silenceMs, maxInFlight } = this.settings;
    this.bus = new BusClient({ url, token, gzip, silenceMs, connections: maxInFlight });
    this.payloads = new PayloadUploads(this.bus);
    // Each request and each pause listens.
    setMaxListeners(0, this.abort.signal);
  }

  /**
   * Resolves once the event is durable. The event is encoded at once; it and its payload may be reused.
   * Errors: ProducerError with the bus's code where it refused the event, else TRB-PRODUCER-EVENT, -FULL, -DEADLINE,
   * -CLOSED.
   */
  async send(event: ChangeEvent): Promise<Receipt> {
    if (this.closed) throw new ProducerError("TRB-PRODUCER-CLOSED", "the producer is closed");
    const entry = this.entryOf(event);
    if (this.outside.length === 0 && this.fits(entry)) this.admit(entry);
    else if (this.settings.whenFull === "reject") {
      throw new ProducerError("TRB-PRODUCER-FULL", "the buffer is full", { retryable: true });
    } else this.outside.push(entry);
    this.open.add(entry);
    this.watchDeadline();
    if (this.isFull()) this.pump();
    else if (this.ready.count > 0) {
      // Not before the caller has had its turn: what it sends in a row goes together.
      this.pumpTimer ??= setTimeout(() => this.pump(), Math.max(0, Math.ceil(this.waitMs())));
    }
    return entry.receipt;
  }

  /** Resolves when there is room, for callers that do not wait for each `send`. */
  async whenRoom(): Promise<void> {
    while (this.outside.length > 0 || this.bufferedBytes >= this.settings.maxBufferedBytes) {
      await new Promise<void>((free) => this.room.add(free));
    }
  }

  /** What is not settled yet. */
  get pending(): { readonly events: number; readonly bytes: number } {
    return { events: this.open.size, bytes: this.bufferedBytes };
  }

  /** Sends what waits without lingering; resolves when all that was sent before the call is accepted or given up. */
  async flush(): Promise<void> {
    this.hurried++;
    this.pump();
    await Promise.all(Array.from(this.open, ({ settled }) => settled));
    this.hurried--;
  }

  /**
   * Takes no more events, delivers the rest and closes the connections; what is not accepted within `withinMs` (30
   * seconds by default) is given up. A second call gives the first one's report.
   */
  close({ withinMs = 30_000 }: { readonly withinMs?: number } = {}): Promise<CloseReport> {
    this.closed ??= this.end(withinMs);
    return this.closed;
  }

  private async end(withinMs: number): Promise<CloseReport> {
    const entries = [...this.open];
    const patience = setTimeout(() => {
      for (const entry of entries) {
        this.drop(entry, "TRB-PRODUCER-CLOSED", "the producer was closed before the event was accepted");
      }
      this.letIn();
    }, withinMs);
    await this.flush();
    this.abort.abort();
    clearTimeout(patience);
    clearTimeout(this.pumpTimer);
    clearTimeout(this.deadlineTimer);
    this.bus.close();
    return {
      undelivered: entries.flatMap(({ event, error }) => (error === undefined ? [] : [{ event, error }])),
    };
  }

  private entryOf(event: ChangeEvent): Entry {
    const { payload } = event;
    const now = performance.now();
    if (!(payload instanceof Uint8Array) || payload.length <= this.settings.uploadAboveBytes) {
      return new Entry(event, encodeEvent(event), undefined, now);
    }
    const { payload: _, ...rest } = event;
    return new Entry(event, encodeEvent(rest), Uint8Array.from(payload), now);
  }

  private fits({ size }: Entry): boolean {
    return this.bufferedBytes === 0 || this.bufferedBytes + size <= this.settings.maxBufferedBytes;
  }

  private admit(entry: Entry): void {
    this.bufferedBytes += entry.size;
    if (this.chains.add(entry)) this.advance(entry);
    else entry.place = "behind";
  }

  /** Nothing of its entity is before it: it may leave, once its payload is where the bus finds it. */
  private advance(entry: Entry): void {
    if (entry.upload === undefined) this.ready.add(entry);
    else {
      entry.place = "resting";
      this.toUpload.push(entry);
      void this.upload();
    }
  }

  private async upload(): Promise<void> {
    if (this.uploading >= UPLOADS) return;
    const entry = this.toUpload.shift();
    if (entry === undefined) return;
    this.uploading++;
    for (let attempt = 1; !entry.done; attempt++) {
      const reference = await this.payloads.put(entry.entity, entry.upload!, this.abort.signal);
      if (entry.done) break;
      if (!(reference instanceof Refused)) {
        entry.bytes = withReference(entry.encoded, reference);
        entry.uploads++;
        this.ready.add(entry);
        this.pump();
        break;
      }
      const { error, retryAfterMs } = reference;
      entry.obstacle = error;
      if (error.retryable) await this.sleep(pauseMs(attempt, retryAfterMs));
      else {
        entry.giveUp(error);
        this.leave(entry);
        this.letIn();
        this.pump();
      }
    }
    this.uploading--;
    void this.upload();
  }

  /** Sends what is due; sets a timer for what will be. */
  private pump(): void {
    clearTimeout(this.pumpTimer);
    this.pumpTimer = undefined;
    while (this.ready.count > 0 || this.halves.length > 0) {
      // While the bus is not well, one request asks whether it is again.
      if (this.inFlight >= (this.failures > 0 ? 1 : this.settings.maxInFlight)) return;
      const wait = this.waitMs();
      if (wait > 0) {
        this.pumpTimer = setTimeout(() => this.pump(), Math.ceil(wait));
        return;
      }
      const { maxBatchEvents, maxBatchBytes } = this.settings;
      const batch = this.halves.shift() ?? this.ready.take(maxBatchEvents, maxBatchBytes);
      void this.publish(batch.filter(({ done }) => !done));
    }
  }

  /** Milliseconds until the next request may start. */
  private waitMs(): number {
    const now = performance.now();
    const held = this.holdUntil - now;
    if (held > 0 || this.hurried > 0 || this.halves.length > 0) return held;
    return this.isFull() ? 0 : this.ready.since + this.settings.lingerMs - now;
  }

  /** Whether a whole batch is ready. */
  private isFull(): boolean {
    const { maxBatchEvents, maxBatchBytes } = this.settings;
    return this.ready.count >= maxBatchEvents || this.ready.bytes >= maxBatchBytes;
  }

  private async publish(batch: readonly Entry[]): Promise<void> {
    if (batch.length === 0) return;
    this.inFlight++;
    for (const entry of batch) entry.place = "flying";
    const body = encodeRequest(batch.map(({ bytes }) => bytes));
    const outcome = await this.bus.publish(PROTOBUF, body, batch.length, this.abort.signal);
    this.inFlight--;
    this.settle(batch, outcome);
    this.letIn();
    this.pump();
  }

  private settle(batch: readonly Entry[], outcome: Outcome): void {
    if (outcome.sentTwice) for (const entry of batch) entry.mayHaveLanded = true;
    switch (outcome.kind) {
      case "answered":
        this.failures = 0;
        this.settleEach(batch, outcome);
        return;
      case "later": {
        const { error, retryAfterMs } = outcome;
        const now = performance.now();
        // Those that were in flight together failed once.
        if (now >= this.holdUntil) this.failures++;
        this.holdUntil = Math.max(this.holdUntil, now + pauseMs(this.failures, retryAfterMs));
        for (const entry of batch) {
          entry.obstacle = error;
          entry.mayHaveLanded ||= error.mayHaveLanded;
        }
        this.ready.putBack(this.unlessDone(batch));
        return;
      }
      case "too-large": {
        if (batch.length === 1) break;
        const rest = this.unlessDone(batch);
        for (const entry of rest) entry.place = "resting";
        const middle = rest.length >> 1;
        this.halves.push(...[rest.slice(0, middle), rest.slice(middle)].filter(({ length }) => length > 0));
        return;
      }
    }
    for (const entry of batch) {
      entry.giveUp(outcome.error);
      this.leave(entry);
    }
  }

  private settleEach(
    batch: readonly Entry[],
    { answer, retryAfterMs }: Outcome & { kind: "answered" },
  ): void {
    const again: Entry[] = [];
    const lost: Entry[] = [];
    let attempts = 0;
    for (const [i, result] of answer.results().entries()) {
      const entry = batch[i]!;
      if (result.accepted) {
        entry.accept({ partition: result.partition, position: result.position });
        this.leave(entry);
        continue;
      }
      const { code, message, retryable } = result;
      entry.mayHaveLanded ||= MAY_HAVE_LANDED.has(code);
      const { mayHaveLanded } = entry;
      if (code === PAYLOAD_MISSING && entry.uploads === 1) {
        entry.obstacle = new ProducerError(code, message, { mayHaveLanded });
        lost.push(entry);
      } else if (retryable) {
        entry.obstacle = new ProducerError(code, message, { retryable, mayHaveLanded });
        attempts = Math.max(attempts, ++entry.attempts);
        again.push(entry);
      } else {
        entry.giveUp(new ProducerError(code, message, { refused: "event", mayHaveLanded }));
        this.leave(entry);
      }
    }
    for (const entry of this.unlessDone(lost)) this.advance(entry);
    const rest = this.unlessDone(again);
    if (rest.length === 0) return;
    // They alone rest; what else is there goes on meanwhile.
    for (const entry of rest) entry.place = "resting";
    void this.sleep(pauseMs(attempts, retryAfterMs)).then(() => {
      for (const entry of rest) if (!entry.done) this.ready.add(entry);
      this.pump();
    });
  }

  /** Ends early with the producer, which no timer keeps alive. */
  private sleep(ms: number): Promise<void> {
    return sleep(ms, undefined, { signal: this.abort.signal }).catch(() => undefined);
  }

  /** Without those that were given up while they were in flight. */
  private unlessDone(entries: readonly Entry[]): Entry[] {
    for (const entry of entries) if (entry.done) this.leave(entry);
    return entries.filter(({ done }) => !done);
  }

  /** The first of its chain is settled and in no request: frees what it held, and lets the next one of its entity go. */
  private leave(entry: Entry): void {
    this.free(entry);
    const next = this.chains.shift(entry, (dropped) => this.free(dropped));
    if (next !== undefined) this.advance(next);
  }

  /** Gives an entry up. One that is in flight keeps its place in its chain until the request has ended. */
  private drop(entry: Entry, code: ProducerCode, message: string): void {
    if (entry.done) return;
    entry.abandon(code, message);
    this.open.delete(entry);
    if (entry.place === "ready") this.ready.remove(entry);
    if (entry.place === "ready" || entry.place === "resting") this.leave(entry);
  }

  private free(entry: Entry): void {
    this.open.delete(entry);
    this.bufferedBytes -= entry.size;
  }

  private letIn(): void {
    let admitted = 0;
    for (const entry of this.outside) {
      if (!entry.done) {
        if (!this.fits(entry)) break;
        this.admit(entry);
      }
      admitted++;
    }
    this.outside.splice(0, admitted);
    if (this.outside.length > 0 || this.bufferedBytes >= this.settings.maxBufferedBytes) return;
    for (const free of this.room) free();
    this.room.clear();
  }

  private watchDeadline(): void {
    if (this.deadlineTimer !== undefined) return;
    const [oldest] = this.open;
    if (oldest === undefined) return;
    const wait = oldest.since + this.settings.deadlineMs - performance.now();
    this.deadlineTimer = setTimeout(() => this.expire(), Math.max(1, Math.ceil(wait)));
    // Not what keeps a process alive: requests and pauses do while there is something to deliver.
    this.deadlineTimer.unref();
  }

  private expire(): void {
    this.deadlineTimer = undefined;
    const { deadlineMs } = this.settings;
    const before = performance.now() - deadlineMs;
    for (const entry of this.open) {
      if (entry.since > before) break;
      this.drop(entry, "TRB-PRODUCER-DEADLINE", `not accepted within ${deadlineMs} ms`);
    }
    this.letIn();
    this.pump();
    this.watchDeadline();
  }
}
