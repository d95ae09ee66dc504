import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { Frames } from "../contracts/envelope.js";
import type { JsonEvent, JsonEvents } from "../contracts/json.js";
import { elements, type Found, lines } from "../contracts/json-body.js";
import type { Grant } from "../tenancy/grant.js";
import { ENVELOPE_BYTES, type EventGate, type Packed } from "./event-gate.js";
import type { RoutedEvents } from "./outlets.js";
import { Results } from "./response.js";
import type { Work } from "./work.js";

/** What the answer to one event takes, about: many small bad ones ask for more than they bring. */
export const ANSWER_BYTES = 256;

/** A request taken apart: what to append, and the results so far. */
export interface Collected {
  readonly results: Results;
  /** The accepted events, as slices of one buffer. */
  readonly events: RoutedEvents;
}

/** What collecting the events of one request needs. */
export interface Collecting {
  readonly gate: EventGate;
  readonly json: JsonEvents;
  readonly grant: Grant;
  readonly work: Work;
  readonly maxEvents: number;
  readonly maxPayloadBytes: number;
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
    const run = collector.takeRun(i, body, starts, ends);
    i = run.next;
    if (run.packed) await collector.unpack(i - 1, run.packed, starts[i - 1]!, ends[i - 1]! - starts[i - 1]!);
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
    const packed = collector.take(i, event, 0, event.length, at);
    if (packed) await collector.unpack(i, packed, at, event.length);
    if (collector.refused(i)) continue;
    grow(event.length);
    converted.push(event);
    at += event.length;
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

  constructor(count: number, order: Collecting) {
    this.order = order;
    this.results = new Results(count);
    this.starts = new Uint32Array(count);
    this.ends = new Uint32Array(count);
    this.slots = new Uint32Array(count);
    this.routes = new Uint16Array(count);
  }

  /** Checks event `i`; where it is accepted, it will lie at `at` of the appended buffer. A packed payload is returned. */
  take(i: number, bytes: Buffer, start: number, end: number, at: number): Packed | undefined {
    const { gate, grant } = this.order;
    const verdict = gate.check(bytes, start, end, grant);
    if (verdict === undefined) this.accept(gate.slot(), gate.route, at, end - start);
    else if (typeof verdict === "string") this.results.codes[i] = verdict;
    else return verdict;
    return undefined;
  }

  /**
   * Takes events that stay where they are, from event `i` on, until it is time to rest or after one that is packed. A
   * loop that may wait costs a third more for each event, so this one does not.
   */
  takeRun(
    i: number,
    bytes: Buffer,
    starts: readonly number[],
    ends: readonly number[],
  ): { readonly next: number; readonly packed: Packed | undefined } {
    const { work } = this.order;
    const { count } = this.results;
    let next = i;
    while (next < count) {
      const start = starts[next]!;
      const end = ends[next]!;
      const packed = this.take(next++, bytes, start, end, start);
      if (packed || work.tired(end - start)) return { next, packed };
    }
    return { next, packed: undefined };
  }

  /** Ends what `take` began, for an event of `length` bytes. Errors: TRB-REQ-TOO-LARGE. */
  async unpack(i: number, packed: Packed, at: number, length: number): Promise<void> {
    const { work, gate, maxPayloadBytes } = this.order;
    // The gate looks at other requests' events meanwhile.
    const slot = gate.slot();
    const { route } = gate;
    const plain = await work.unpack(packed.compression, packed.bytes, maxPayloadBytes);
    if (typeof plain === "string") this.results.codes[i] = plain;
    else if (packed.checker.check(plain, 0, plain.length)) this.accept(slot, route, at, length);
    else this.results.codes[i] = "TRB-EVENT-PAYLOAD-DECODE";
    if (work.tired(plain.length)) await work.rest();
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

  private accept(slot: number, route: number, at: number, length: number): void {
    const next = this.results.accepted++;
    this.starts[next] = at;
    this.ends[next] = at + length;
    this.slots[next] = slot;
    this.routes[next] = route;
  }
}

const tooMany = (maxEvents: number) =>
  new TributaryError("TRB-REQ-TOO-MANY-EVENTS", `body: expected at most ${maxEvents} events`);

const tooLong = (maxBytes: number): JsonEvent => ({
  code: "TRB-EVENT-PAYLOAD-SIZE",
  message: `event: expected at most ${maxBytes} bytes of JSON`,
});
