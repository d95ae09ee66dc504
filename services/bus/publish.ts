import { setImmediate as nextTurn } from "node:timers/promises";
import { TributaryError } from "../base/errors.js";
import { frames } from "../contracts/envelope.js";
import { type JsonEvent, type JsonEvents, lines } from "../contracts/json.js";
import type { EventSlices } from "../stream/change-stream.js";
import type { Grant } from "../tenancy/grant.js";
import type { EventGate } from "./event-gate.js";
import { Results } from "./response.js";

/** Converting JSON gives way to other requests after this many events. */
const JSON_TURN = 200;

/** A request taken apart: what to append, and the results so far. */
export interface Collected {
  readonly results: Results;
  /** The accepted events, as slices of one buffer. */
  readonly events: EventSlices;
}

/**
 * Checks each event of a PublishRequest where it lies; the accepted ones stay slices of the body.
 * Errors: TRB-REQ-UNREADABLE, TRB-REQ-TOO-MANY-EVENTS.
 */
export function collectProtobuf(body: Buffer, gate: EventGate, grant: Grant, maxEvents: number): Collected {
  const found = frames(body);
  if (!found) throw new TributaryError("TRB-REQ-UNREADABLE", "body: expected a tributary.v1.PublishRequest");
  if (found.count > maxEvents) throw tooMany(maxEvents);
  const { starts, ends } = found;
  const collector = new Collector(found.count);
  for (let i = 0; i < found.count; i++) collector.take(i, body, starts[i]!, ends[i]!, gate, grant);
  return collector.finish(body);
}

/** The same for a PublishRequest or an array of events in proto3 JSON. */
export function collectJson(
  body: Buffer,
  json: JsonEvents,
  gate: EventGate,
  grant: Grant,
  maxEvents: number,
): Promise<Collected> {
  const values = json.split(body);
  if (values.length > maxEvents) throw tooMany(maxEvents);
  return collectConverted(values.length, (i) => json.convert(values[i]), gate, grant);
}

/** The same for one event in JSON per line; a line that cannot be read is a rejected event. */
export function collectNdjson(
  body: Buffer,
  json: JsonEvents,
  gate: EventGate,
  grant: Grant,
  maxEvents: number,
): Promise<Collected> {
  const found: (readonly [number, number])[] = [];
  for (const line of lines(body)) {
    if (found.length === maxEvents) throw tooMany(maxEvents);
    found.push(line);
  }
  return collectConverted(found.length, (i) => json.convertLine(body.subarray(...found[i]!)), gate, grant);
}

async function collectConverted(
  count: number,
  convert: (index: number) => JsonEvent,
  gate: EventGate,
  grant: Grant,
): Promise<Collected> {
  const collector = new Collector(count);
  const converted: Buffer[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (i % JSON_TURN === JSON_TURN - 1) await nextTurn();
    const event = convert(i);
    if (!Buffer.isBuffer(event)) {
      collector.reject(i, event.code, event.message);
      continue;
    }
    if (collector.take(i, event, 0, event.length, gate, grant, at)) {
      converted.push(event);
      at += event.length;
    }
  }
  return collector.finish(Buffer.concat(converted, at));
}

class Collector {
  private readonly results: Results;
  private readonly starts: Uint32Array;
  private readonly ends: Uint32Array;
  private readonly partitions: Uint16Array;

  constructor(count: number) {
    this.results = new Results(count);
    this.starts = new Uint32Array(count);
    this.ends = new Uint32Array(count);
    this.partitions = new Uint16Array(count);
  }

  /** Checks event `i`; where it is accepted, it will lie at `at` (default: where it is) of the appended buffer. */
  take(
    i: number,
    bytes: Buffer,
    start: number,
    end: number,
    gate: EventGate,
    grant: Grant,
    at: number = start,
  ): boolean {
    const code = gate.check(bytes, start, end, grant);
    const results = this.results;
    if (code !== undefined) {
      results.codes[i] = code;
      return false;
    }
    const next = results.accepted++;
    const partition = gate.partition();
    results.partitions[i] = partition;
    this.starts[next] = at;
    this.ends[next] = at + end - start;
    this.partitions[next] = partition;
    return true;
  }

  reject(i: number, code: NonNullable<Results["codes"][number]>, message: string): void {
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
        partitions: this.partitions.subarray(0, count),
      },
    };
  }
}

const tooMany = (maxEvents: number) =>
  new TributaryError("TRB-REQ-TOO-MANY-EVENTS", `body: expected at most ${maxEvents} events`);
