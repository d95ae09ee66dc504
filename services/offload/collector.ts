import { setImmediate } from "node:timers/promises";
import { Envelope } from "../contracts/envelope.js";
import { referenceOf } from "../contracts/payload-reference.js";
import type { ObjectInfo, ObjectStore } from "../storage/object-store.js";
import type { StreamBatch } from "../stream/change-stream.js";
import { isOld, KEPT, keptKey, OFFLOAD, uriAt } from "./places.js";

export interface CollectorOptions {
  readonly store: ObjectStore;
  /** Objects of this age that nothing names are taken away. */
  readonly keepMs: number;
  /** What the streams of all domains hold that has not landed yet: all of it that is durable when this is called. */
  readonly waiting: () => AsyncIterable<StreamBatch>;
}

export interface Collected {
  /** Payloads' objects that were found and are still there. */
  readonly objects: number;
  readonly bytes: number;
  readonly removed: number;
  /** So much waits in the streams that this round cannot tell what is named there: it has taken nothing away. */
  readonly undecided: boolean;
}

/** Payloads that one round takes away at most; the rest is for the next one. */
const MOST_AT_ONCE = 10_000;
/** Events that wait which a round looks at. */
const MOST_WAITING = 500_000;

/** The objects of one payload, in the order they were put. */
interface Lying {
  readonly uri: string;
  readonly objects: readonly ObjectInfo[];
}

/** What may go of one payload. */
interface Candidate extends Lying {
  readonly kept: boolean;
}

/**
 * Takes payloads away that nothing names and that are older than any stream and parking keep events; and of those that
 * stay, objects that a later one has replaced.
 *
 * What lands, is parked or is set aside has its payloads kept for good before the stream may forget it (`keepForGood`).
 * So a payload that is not kept, and that no event names which waits in a stream, is named by nothing; and the streams
 * are looked at first, since what leaves them meanwhile is kept by then. No event to come relies on an object of this
 * age: the bus puts it anew, under another key (`Offloaded`). So it does not matter how long ago this has looked when
 * it deletes, nor who else does the same: neither leases nor clocks of less than half of `keepMs` are relied upon.
 */
export class Collector {
  private readonly store: ObjectStore;
  private readonly keepMs: number;
  /** The uri up to which the last round came; undefined when it came to the end. */
  private reached: string | undefined;

  constructor(private readonly options: CollectorOptions) {
    this.store = options.store;
    this.keepMs = options.keepMs;
  }

  /**
   * One round, which begins where the last one ended, so that nobody's garbage keeps others' from being looked at.
   * Errors: TRB-STORE-FAILED, and those of the streams; what was not decided then stays.
   */
  async run(): Promise<Collected> {
    let objects = 0;
    let bytes = 0;
    const ahead: Candidate[] = [];
    const behind: Candidate[] = [];
    for await (const { lying, kept } of this.payloads()) {
      objects += lying.objects.length;
      for (const object of lying.objects) bytes += object.bytes;
      const old = kept ? this.replacedOf(lying) : lying.objects.filter((object) => this.isOld(object));
      const some = this.reached === undefined || lying.uri > this.reached ? ahead : behind;
      if (old.length > 0 && some.length < MOST_AT_ONCE) some.push({ uri: lying.uri, objects: old, kept });
    }
    const candidates = [...ahead, ...behind].slice(0, MOST_AT_ONCE);
    const named = candidates.every(({ kept }) => kept) ? new Set<string>() : await this.waitingUris();
    let removed = 0;
    for (const candidate of candidates) {
      if (!candidate.kept && !(await this.isUnnamed(candidate, named))) continue;
      for (const object of candidate.objects) {
        await this.remove(object.key);
        removed++;
        bytes -= object.bytes;
      }
    }
    this.reached = candidates.length < MOST_AT_ONCE ? undefined : candidates.at(-1)!.uri;
    return { objects: objects - removed, bytes, removed, undecided: named === undefined };
  }

  /** `waiting`: those that events name which wait; undefined where nobody knows. */
  private async isUnnamed({ uri }: Lying, waiting: ReadonlySet<string> | undefined): Promise<boolean> {
    // Only now: what has left the streams since was kept before.
    return waiting?.has(uri) === false && (await this.store.stat(keptKey(uri))) === undefined;
  }

  private isOld(object: ObjectInfo): boolean {
    return isOld(object, this.keepMs);
  }

  /** What a payload's first key had is never had again, so that it stays in use: an empty object is no payload. */
  private async remove(key: string): Promise<void> {
    if (uriAt(key) === key) await this.store.put(key, Buffer.alloc(0));
    else await this.store.delete([key]);
  }

  /** Old ones that have a later one of the same size. */
  private replacedOf({ objects }: Lying): ObjectInfo[] {
    return objects.filter(
      (object, i) => this.isOld(object) && objects.slice(i + 1).some(({ bytes }) => bytes === object.bytes),
    );
  }

  /** Payloads by uri, and whether they are kept; both listings come in one order. */
  private async *payloads(): AsyncGenerator<{ readonly lying: Lying; readonly kept: boolean }> {
    const kept = this.store.list(KEPT)[Symbol.asyncIterator]();
    let next = await kept.next();
    const isKept = async (uri: string) => {
      const key = keptKey(uri);
      while (next.done !== true && next.value.key < key) next = await kept.next();
      return next.done !== true && next.value.key === key;
    };
    let lying: { uri: string; objects: ObjectInfo[] } | undefined;
    for await (const object of this.store.list(OFFLOAD)) {
      const uri = uriAt(object.key);
      if (uri === undefined || object.bytes === 0) continue;
      if (lying !== undefined && lying.uri !== uri) {
        yield { lying, kept: await isKept(lying.uri) };
        lying = undefined;
      }
      lying ??= { uri, objects: [] };
      lying.objects.push(object);
    }
    if (lying !== undefined) yield { lying, kept: await isKept(lying.uri) };
  }

  /** Those that events name which wait in the streams; undefined where that is too much to look at. */
  private async waitingUris(): Promise<Set<string> | undefined> {
    const uris = new Set<string>();
    const envelope = new Envelope();
    let looked = 0;
    for await (const { bytes, count, starts, ends } of this.options.waiting()) {
      looked += count;
      if (looked > MOST_WAITING) return undefined;
      for (let i = 0; i < count; i++) {
        if (envelope.read(bytes, starts[i]!, ends[i]!) !== undefined) continue;
        const reference = referenceOf(envelope);
        if (reference !== undefined) uris.add(reference.uri);
      }
      await setImmediate();
    }
    return uris;
  }
}
