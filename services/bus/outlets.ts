import type { Config } from "../base/config.js";
import { TributaryError } from "../base/errors.js";
import { bytesOf, type ChangeStreamWriter, type OutgoingEvents } from "../stream/change-stream.js";
import type { Streams } from "../stream/domains.js";
import type { Grant } from "../tenancy/grant.js";
import { Backlog } from "./backlog.js";
import type { BusMetrics } from "./metrics.js";
import { nothingStored, type Outcome, type Results, type Stored, settle } from "./response.js";

/** The accepted events of a request, and for each the outlet that it goes by. */
export interface RoutedEvents extends OutgoingEvents {
  readonly routes: Uint16Array;
}

type Limits = Pick<Config["bus"], "maxLagBytes" | "maxInFlightBytes">;

/**
 * The streams that events go out by. Each has a backlog of its own, and of the memory of requests no more than its share:
 * one that is slow, full or gone costs its own events, and delays no others.
 */
export class Outlets {
  private readonly outlets: Outlet[] = [];
  private readonly byName = new Map<string, number>();
  private readonly byType = new Map<string, number>();

  constructor(
    private readonly streams: Streams<ChangeStreamWriter>,
    private readonly limits: Limits,
    private readonly metrics: BusMetrics,
  ) {}

  /** By stream, the bytes that wait in it to land. */
  *backlogs(): Generator<readonly [stream: string, bytes: number]> {
    for (const { name, backlogBytes } of this.outlets) yield [name, backlogBytes];
  }

  /** The number of the outlet for events of this type; it stays the same. */
  routeOf(entityType: string): number {
    const name = this.streams.nameOf(entityType);
    let route = this.byName.get(name);
    if (route === undefined) {
      route = this.outlets.length;
      this.byName.set(name, route);
      this.outlets.push(new Outlet(name, this.streams, this.limits, this.metrics));
    }
    this.byType.set(entityType, route);
    return route;
  }

  /** Errors: TRB-BUS-BUSY when no outlet that this bearer may publish by would take anything. */
  admit({ bearerShare, entityTypes }: Grant): void {
    const routes =
      entityTypes === undefined
        ? this.outlets.keys()
        : [...entityTypes].flatMap((type) => this.byType.get(type) ?? []);
    let why: string | undefined;
    for (const route of routes) {
      why = this.outlets[route]!.refusal(bearerShare);
      if (why === undefined) return;
    }
    if (why !== undefined) throw new TributaryError("TRB-BUS-BUSY", `${why}; nothing was accepted`);
  }

  /**
   * Appends side by side what goes by different outlets; what one of them does not take is rejected, retryably, event by
   * event. Errors: when nothing at all was taken, TRB-BUS-BUSY, or that of a stream that failed.
   */
  async append(results: Results, events: RoutedEvents, share: string): Promise<Stored> {
    if (events.count === 0) return nothingStored;
    const alone = this.outlets.length > 1 ? this.limits.maxInFlightBytes / 2 : Number.POSITIVE_INFINITY;
    const parts = partsOf(events);
    const outcomes = new Map<number, Outcome>();
    await Promise.all(
      [...parts].map(async ([route, part]) => {
        outcomes.set(route, await this.outlets[route]!.append(part, share, alone));
      }),
    );
    const stored = settle(results, events.routes, outcomes);
    // What is too large will be as long as it is sent: that has to be told of each, or all would come again.
    if (results.accepted > 0 || results.codes.includes("TRB-EVENT-STREAM-SIZE")) return stored;
    const failures = [...outcomes.values()].filter((outcome) => outcome instanceof TributaryError);
    // The one that leaves it open whether an event was stored is what the producer has to know.
    const worst = failures.find(({ code }) => code !== "TRB-BUS-BUSY") ?? failures[0];
    throw worst ?? new TributaryError("TRB-BUS-BUSY", "the stream is at its capacity; nothing was accepted");
  }
}

/** One stream, what waits in it to land, and what is on its way into it. */
class Outlet {
  private readonly backlog: Backlog;
  private onTheirWay = 0;
  private readonly byShare = new Map<string, number>();

  constructor(
    readonly name: string,
    private readonly streams: Streams<ChangeStreamWriter>,
    limits: Limits,
    private readonly metrics: BusMetrics,
  ) {
    this.backlog = new Backlog(limits.maxLagBytes, () => this.backlogBytes);
  }

  get backlogBytes(): number {
    return this.streams.stream(this.name)?.backlogBytes() ?? 0;
  }

  refusal(share: string): string | undefined {
    return this.backlog.refusal(share);
  }

  /** At most `most` bytes are on their way at once, or one request's. */
  async append(events: OutgoingEvents, share: string, most: number): Promise<Outcome> {
    const stream = this.streams.stream(this.name);
    if (stream === undefined) return new TributaryError("TRB-BUS-STREAM-DOWN");
    const bytes = bytesOf(events);
    const isSlow = this.isFull(share, bytes, Math.min(most, stream.maxInFlightBytes ?? most));
    const why = isSlow ? "the stream is slow" : this.backlog.refusal(share);
    if (why !== undefined) return new TributaryError("TRB-BUS-BUSY", `${why}; nothing was accepted`);
    this.move(share, bytes);
    const started = performance.now();
    try {
      const appended = await stream.append(events);
      this.metrics.appendSeconds.observe({ stream: this.name }, (performance.now() - started) / 1000);
      this.backlog.appended(share, bytes);
      return appended;
    } catch (error) {
      this.metrics.appendFailures.inc({ stream: this.name });
      if (error instanceof TributaryError) return error;
      return new TributaryError("TRB-INTERNAL", undefined, { cause: error });
    } finally {
      this.move(share, -bytes);
    }
  }

  /** As of the backlog: each share may have as much on its way as is still free, so that one that floods leaves room. */
  private isFull(share: string, bytes: number, most: number): boolean {
    const own = this.byShare.get(share) ?? 0;
    return this.onTheirWay > 0 && this.onTheirWay + own + bytes > most;
  }

  private move(share: string, bytes: number): void {
    this.onTheirWay += bytes;
    const own = (this.byShare.get(share) ?? 0) + bytes;
    if (own === 0) this.byShare.delete(share);
    else this.byShare.set(share, own);
  }
}

/** By route, its events in their order; all slices of the one buffer. */
function partsOf(events: RoutedEvents): ReadonlyMap<number, OutgoingEvents> {
  const { bytes, count, starts, ends, slots, routes } = events;
  const sizes = new Map<number, number>();
  for (let i = 0; i < count; i++) sizes.set(routes[i]!, (sizes.get(routes[i]!) ?? 0) + 1);
  if (sizes.size === 1) return new Map([[routes[0]!, events]]);
  return new Map(
    [...sizes].map(([route, size]) => {
      const part = {
        bytes,
        count: size,
        starts: new Uint32Array(size),
        ends: new Uint32Array(size),
        slots: new Uint32Array(size),
      };
      let at = 0;
      for (let i = 0; i < count; i++) {
        if (routes[i] !== route) continue;
        part.starts[at] = starts[i]!;
        part.ends[at] = ends[i]!;
        part.slots[at++] = slots[i]!;
      }
      return [route, part];
    }),
  );
}
