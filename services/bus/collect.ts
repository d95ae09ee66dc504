import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { TRACED_AT_ONCE } from "../base/traces.js";
import { COMPRESSION_NONE, Frames } from "../contracts/envelope.js";
import type { JsonEvent, JsonEvents } from "../contracts/json.js";
import { elements, type Found, lines } from "../contracts/json-body.js";
import { withReference } from "../contracts/payload-reference.js";
import type { Offloaded } from "../offload/offloaded.js";
import type { Grant } from "../tenancy/grant.js";
import { ENVELOPE_BYTES, type EventGate, leastReferred, type Pending } from "./event-gate.js";
import type { RoutedEvents } from "./outlets.js";
import { Results } from "./response.js";
import type { Work } from "./work.js";

/** What the answer to one event takes, about: many small bad ones ask for more than they bring. */
export const ANSWER_BYTES = 256;

/** A request taken apart: what to append, and the results so far. */
export interface Collected {
  readonly results: Results;
  /** Traces of some of the accepted events, by their place among them. */
  readonly traced: ReadonlyMap<number, string>;
  /** The accepted events, as slices of one buffer. */
  readonly events: RoutedEvents;
  /** When the first of the payloads that lie elsewhere was seen to (ms since the epoch); undefined without any. */
  readonly seenAt: number | undefined;
}

/** What collecting the events of one request needs. */
export interface Collecting {
  readonly gate: EventGate;
  readonly json: JsonEvents;
  readonly grant: Grant;
  readonly work: Work;
  readonly maxEvents: number;
  readonly maxPayloadBytes: number;
  readonly maxOffloadBytes: number;
  /** Look for the traces of events. */
  readonly tracing: boolean;
  /** Where payloads of more bytes go. */
  readonly offloaded: Offloaded;
  /** Notes bytes that are kept beside the body. */
  readonly grow: (bytes: number) => void;
}

/**
 * Checks each event of a PublishRequest where it lies; the accepted ones stay slices of the body.
 * Errors: TRB-REQ-UNREADABLE, TRB-REQ-TOO-MANY-EVENTS, TRB-REQ-TOO-LARGE (unpacked).
 */
export async function collectProtobuf(body: Buffer, order: Collecting): Promise<Collected> {
  const { work, maxEvents } = order;
  const found = new Frames(body);
  for (;;) {
    const end = found.walk(maxEvents);
    if (end === undefined) {
      throw new TributaryError("TRB-REQ-UNREADABLE", "body: expected a tributary.v1.PublishRequest");
    }
    if (found.count > maxEvents) throw tooMany(maxEvents);
    if (end) break;
    if (work.tired(body.length)) await work.rest();
  }
  const { count, starts, ends } = found;
  order.grow(count * ANSWER_BYTES);
  const collector = new Collector(count, order);
  for (let i = 0; i < count; ) {
    const { next, pending } = collector.takeRun(i, body, starts, ends);
    i = next;
    if (pending) await collector.settle(i - 1, pending, body, starts[i - 1]!, ends[i - 1]!, starts[i - 1]!);
    else if (i < count) await work.rest();
  }
  return collector.finish(body);
}

/** The same for a PublishRequest or an array of events in proto3 JSON. */
export function collectJson(body: Buffer, order: Collecting): Promise<Collected> {
  return collectText(body, elements(body), order, (text) => {
    const event = order.json.convertText(text);
    if (event === undefined) throw new TributaryError("TRB-REQ-UNREADABLE", "body: expected UTF-8 JSON");
    return event;
  });
}

/** The same for one event in JSON per line; a line that cannot be read is a rejected event. */
export function collectNdjson(body: Buffer, order: Collecting): Promise<Collected> {
  return collectText(body, lines(body), order, (line) => order.json.convertLine(line));
}

async function collectText(
  body: Buffer,
  texts: Generator<Found>,
  order: Collecting,
  convert: (text: Buffer) => JsonEvent,
): Promise<Collected> {
  const { work, maxEvents, grow } = order;
  const maxTextBytes = order.maxPayloadBytes + ENVELOPE_BYTES;
  const found: (readonly [number, number])[] = [];
  for (const text of texts) {
    if (text && found.length === maxEvents) throw tooMany(maxEvents);
    if (text) found.push(text);
    if (work.tired(text ? text[1] - text[0] : body.length)) await work.rest();
  }
  grow(found.length * ANSWER_BYTES);
  const collector = new Collector(found.length, order);
  const converted: Buffer[] = [];
  let at = 0;
  for (const [i, [start, end]] of found.entries()) {
    // Converting costs some ten times as much as checking.
    if (work.tired(10 * (end - start))) await work.rest();
    const event = end - start > maxTextBytes ? tooLong(maxTextBytes) : convert(body.subarray(start, end));
    if (!Buffer.isBuffer(event)) {
      collector.reject(i, event.code, event.message);
      continue;
    }
    const pending = collector.take(i, event, 0, event.length, at);
    const length = pending ? await collector.settle(i, pending, event, 0, event.length, at) : event.length;
    if (collector.refused(i)) continue;
    grow(length);
    converted.push(event.subarray(0, length));
    at += length;
  }
  return collector.finish(Buffer.concat(converted, at));
}

class Collector {
  private readonly order: Collecting;
  private readonly results: Results;
  private readonly starts: Uint32Array;
  private readonly ends: Uint32Array;
  private readonly slots: Uint32Array;
  private readonly routes: Uint16Array;
  private readonly traced = new Map<number, string>();
  private seenAt: number | undefined;

  constructor(count: number, order: Collecting) {
    this.order = order;
    this.results = new Results(count);
    this.starts = new Uint32Array(count);
    this.ends = new Uint32Array(count);
    this.slots = new Uint32Array(count);
    this.routes = new Uint16Array(count);
  }

  /** Checks event `i`; where it is accepted, it will lie at `at` of the appended buffer. What is left to do is returned. */
  take(i: number, bytes: Buffer, start: number, end: number, at: number): Pending | undefined {
    const { gate, grant } = this.order;
    const verdict = gate.check(bytes, start, end, grant);
    if (verdict === undefined) this.accept(gate.slot(), gate.route, at, end - start, this.traceparent());
    else if (typeof verdict === "string") this.results.codes[i] = verdict;
    else return verdict;
    return undefined;
  }

  /**
   * Takes events that stay where they are, from event `i` on, until it is time to rest or after one with which there is
   * more to do. A loop that may wait costs a third more for each event, so this one does not.
   */
  takeRun(
    i: number,
    bytes: Buffer,
    starts: readonly number[],
    ends: readonly number[],
  ): { readonly next: number; readonly pending: Pending | undefined } {
    const { work } = this.order;
    const { count } = this.results;
    let next = i;
    while (next < count) {
      const start = starts[next]!;
      const end = ends[next]!;
      const pending = this.take(next++, bytes, start, end, start);
      if (pending || work.tired(end - start)) return { next, pending };
    }
    return { next, pending: undefined };
  }

  /**
   * Ends what `take` began, for the event bytes[start, end), which may become shorter where it stands. Resolves to its
   * length, if it is accepted. Errors: TRB-REQ-TOO-LARGE.
   */
  async settle(
    i: number,
    pending: Pending,
    bytes: Buffer,
    start: number,
    end: number,
    at: number,
  ): Promise<number> {
    // The gate looks at other requests' events meanwhile.
    const { gate, work } = this.order;
    const slot = gate.slot();
    const { route } = gate;
    const traceparent = this.traceparent();
    let length: number | Code;
    if (pending.kind === "packed") length = (await this.unpack(pending)) ?? end - start;
    else {
      if (pending.kind === "referring") {
        const least = leastReferred(this.order.maxPayloadBytes);
        if (pending.reference.sizeBytes < least) {
          this.reject(i, "TRB-EVENT-REFERENCE", tooSmall(least));
          return 0;
        }
        // What is referred to has to be taken in, and counts like what was sent; packed, as the most it may be.
        const packed = pending.compression !== COMPRESSION_NONE;
        work.decode(packed ? this.order.maxOffloadBytes : pending.reference.sizeBytes);
      }
      work.pause();
      length = await this.elsewhere(pending, bytes, start, end).catch(storeFailed);
      await work.begin();
    }
    if (typeof length === "string") {
      this.results.codes[i] = length;
      return 0;
    }
    this.accept(slot, route, at, length, traceparent);
    return length;
  }

  /** The code with which a packed payload is refused. Errors: TRB-REQ-TOO-LARGE. */
  private async unpack({
    compression,
    bytes,
    checker,
  }: Pending & { kind: "packed" }): Promise<Code | undefined> {
    const { work, maxPayloadBytes } = this.order;
    const plain = await work.unpack(compression, bytes, maxPayloadBytes);
    if (typeof plain === "string") return plain;
    const fits = checker.check(plain, 0, plain.length);
    if (work.tired(plain.length)) await work.rest();
    return fits ? undefined : "TRB-EVENT-PAYLOAD-DECODE";
  }

  /** Length or code of an event whose payload is, or is put, into the object store. Errors: TRB-STORE-FAILED, TRB-LAKE-CLOSED. */
  private async elsewhere(
    pending: Exclude<Pending, { kind: "packed" }>,
    bytes: Buffer,
    start: number,
    end: number,
  ): Promise<number | Code> {
    const { offloaded } = this.order;
    this.seenAt ??= Date.now();
    if (pending.kind === "referring") {
      return (await offloaded.holds(pending.reference)) ? end - start : "TRB-EVENT-PAYLOAD-MISSING";
    }
    const reference = await offloaded.put(pending.tenant, pending.typeUrl, pending.bytes);
    // In the place of the payload, which is not looked at any more.
    return withReference(bytes, start, end, reference).copy(bytes, start);
  }

  refused(i: number): boolean {
    return this.results.codes[i] !== undefined;
  }

  reject(i: number, code: Code, message: string): void {
    this.results.codes[i] = code;
    this.results.messages.set(i, message);
  }

  finish(bytes: Buffer): Collected {
    const count = this.results.accepted;
    return {
      results: this.results,
      traced: this.traced,
      seenAt: this.seenAt,
      events: {
        bytes,
        count,
        starts: this.starts.subarray(0, count),
        ends: this.ends.subarray(0, count),
        slots: this.slots.subarray(0, count),
        routes: this.routes.subarray(0, count),
      },
    };
  }

  /** Of the event that the gate has just looked at. */
  private traceparent(): string | undefined {
    return this.order.tracing && this.traced.size < TRACED_AT_ONCE
      ? this.order.gate.traceparent()
      : undefined;
  }

  private accept(
    slot: number,
    route: number,
    at: number,
    length: number,
    traceparent: string | undefined,
  ): void {
    const next = this.results.accepted++;
    if (traceparent !== undefined) this.traced.set(next, traceparent);
    this.starts[next] = at;
    this.ends[next] = at + length;
    this.slots[next] = slot;
    this.routes[next] = route;
  }
}

/** Of a store that fails: the event may be sent again, and others are none the worse. */
function storeFailed(error: unknown): Code {
  if (error instanceof TributaryError) return error.code;
  throw error;
}

const tooMany = (maxEvents: number) =>
  new TributaryError("TRB-REQ-TOO-MANY-EVENTS", `body: expected at most ${maxEvents} events`);

const tooSmall = (least: number): string =>
  `payload_reference.size_bytes: expected at least ${least}; smaller payloads travel in their event`;

const tooLong = (maxBytes: number): JsonEvent => ({
  code: "TRB-EVENT-PAYLOAD-SIZE",
  message: `event: expected at most ${maxBytes} bytes of JSON; larger payloads go by POST /v1/uploads, or as protobuf`,
});
