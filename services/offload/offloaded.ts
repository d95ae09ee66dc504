import { createHash } from "node:crypto";
import { posix } from "node:path";
import { setImmediate } from "node:timers/promises";
import { FairPermits } from "../base/permits.js";
import { type PayloadReference, uriOf } from "../contracts/payload-reference.js";
import type { ObjectInfo, ObjectStore, PresignedPut } from "../storage/object-store.js";
import { isOld, keptKey, laterKey, laterPrefix } from "./places.js";

/** How much is hashed at once, so that others run between: a millisecond or so. */
const HASHED_AT_ONCE = 512 * 1024;
/** Payloads that one batch has kept for good at a time. */
const KEPT_AT_ONCE = 16;
/** Payloads that are remembered as kept. */
const REMEMBERED = 10_000;

/** Looks at what lies where a payload is wanted. */
const ATTEMPTS = 3;

/** Why there is no payload where a reference says; the same whatever else may lie in the store. */
export type Unusable = "missing" | "corrupt";

/** What is needed to know a payload by. */
type Named = Omit<PayloadReference, "typeUrl">;

/**
 * Payloads that are too large to travel with their events: objects by the hash of their bytes, a tenant's own below its
 * id, so that nobody can name another's. A payload lies where its uri says, or, put anew after a collector may have had
 * an eye on that, beside it (places.ts). No object ever takes the place of another, so that whoever deletes one that it
 * found old, however late, takes nothing that an event has relied upon since.
 */
export class Offloaded {
  /** Old ones are put anew from memory: one at a time, of the tenants in turn. */
  private readonly renewing = new FairPermits(1);
  private readonly kept = new Set<string>();
  /** Those that are being kept, whoever asked for it first. */
  private readonly keeping = new Map<string, Promise<void>>();

  /**
   * What nobody refers to is kept for `keepMs`. Events rely on an object of less than half that age alone, or on one
   * that is kept for good. `presigns`: whether producers may put payloads into the store themselves. `requireOpen`
   * rejects with TRB-LAKE-CLOSED once the lake is closed because it moves. It is asked after a payload was put or seen:
   * one that lay there while the lake was open is copied with it.
   */
  constructor(
    private readonly store: ObjectStore,
    private readonly keepMs: number,
    private readonly presigns = true,
    private readonly requireOpen: () => Promise<void> = async () => undefined,
  ) {}

  /** Durable when resolved. Errors: TRB-STORE-FAILED, TRB-LAKE-CLOSED. */
  async put(tenant: string, typeUrl: string, payload: Buffer): Promise<PayloadReference> {
    const sha256 = await hashOf(payload);
    const uri = uriOf(tenant, sha256);
    await this.keep({ uri, sizeBytes: payload.length, sha256 }, payload);
    return { uri, typeUrl, sizeBytes: payload.length, sha256 };
  }

  /** The same for a payload that its producer has put a hash on; false, and nothing is put, when it has another. */
  async putAs(tenant: string, sha256: Buffer, payload: Buffer): Promise<boolean> {
    if (!(await hashOf(payload)).equals(sha256)) return false;
    await this.keep({ uri: uriOf(tenant, sha256), sizeBytes: payload.length, sha256 }, payload);
    return true;
  }

  private async keep(named: Named, payload: Buffer): Promise<void> {
    const isThere = (await this.store.putIfAbsent(named.uri, payload)) === "exists";
    // Old, or damaged, which is mended by this: it stays, and another lies beside it.
    if (isThere && (await this.lasting(named)) !== "lasts") await this.putAnew(named, payload);
    await this.requireOpen();
  }

  /**
   * Whether the payload lies there, of the size that the reference says, and will for as long as events wait: one that
   * is old is renewed. Its bytes are looked at by whoever takes it in. Errors: TRB-STORE-FAILED, TRB-LAKE-CLOSED.
   */
  async holds(reference: Named): Promise<boolean> {
    const found = await this.lasting(reference);
    const held = found === "lasts" || (found !== undefined && (await this.putAnew(reference)));
    await this.requireOpen();
    return held;
  }

  /**
   * For a payload that its producer wants to put: "held" where it need not, else how it may do so past us; undefined
   * where it has to come by us. One that is old it puts again: we would have to read it.
   * Errors: TRB-STORE-FAILED, TRB-LAKE-CLOSED.
   */
  async offer(reference: Named, lifeMs: number): Promise<Offer> {
    await this.requireOpen();
    if ((await this.lasting(reference)) === "lasts") return "held";
    if (!this.presigns) return undefined;
    const { uri, sizeBytes: bytes, sha256 } = reference;
    const key = (await this.store.stat(uri)) === undefined ? uri : laterKey(uri);
    return this.store.presignPut(key, { bytes, sha256 }, lifeMs);
  }

  /**
   * Puts a payload anew: `given`, or else what lies there and is old. False where there is none. Many may ask for the same
   * at once: the first one does it for all.
   */
  private putAnew(named: Named, given?: Buffer): Promise<boolean> {
    return this.renewing.run(posix.dirname(named.uri), async () => {
      const found = await this.lasting(named);
      if (found === "lasts") return true;
      const payload = given ?? (found && (await this.verified(found.key, named)));
      if (payload === undefined) return false;
      await this.store.put(laterKey(named.uri), payload);
      return true;
    });
  }

  private async verified(key: string, { sizeBytes, sha256 }: Named): Promise<Buffer | undefined> {
    const payload = await this.store.get(key);
    return payload?.length === sizeBytes && (await hashOf(payload)).equals(sha256) ? payload : undefined;
  }

  /** "lasts": events may rely on it. Else one that is old; undefined: there is none of that size. */
  private async lasting({ uri, sizeBytes }: Named): Promise<"lasts" | ObjectInfo | undefined> {
    const first = await this.store.stat(uri);
    if (first === undefined) return undefined;
    const young = (info: ObjectInfo) => info.bytes === sizeBytes && !isOld(info, this.keepMs / 2);
    let some: ObjectInfo | undefined = first.bytes === sizeBytes ? first : undefined;
    let found = young(first) ? first : undefined;
    if (found === undefined) {
      for await (const info of this.store.list(laterPrefix(uri))) {
        if (info.bytes === sizeBytes) some = info;
        if (young(info)) found = info;
      }
    }
    if (found === undefined && (some === undefined || !(await this.isKept(uri)))) return some;
    await this.store.confirm([(found ?? some)!.key]);
    return "lasts";
  }

  private async isKept(uri: string): Promise<boolean> {
    if (this.kept.has(uri)) return true;
    const key = keptKey(uri);
    if ((await this.store.stat(key)) === undefined) return false;
    await this.store.confirm([key]);
    return this.remember(uri);
  }

  private remember(uri: string): true {
    if (this.kept.size >= REMEMBERED) this.kept.clear();
    this.kept.add(uri);
    return true;
  }

  /**
   * Says that rows, parked events or dead letters are about to name these payloads: from now on they stay. Durable when
   * resolved. Errors: TRB-STORE-FAILED.
   */
  async keepForGood(uris: Iterable<string>): Promise<void> {
    const left = [...new Set(uris)].filter((uri) => !this.kept.has(uri)).values();
    const some = async () => {
      for (const uri of left) await this.keepOne(uri);
    };
    await Promise.all(Array.from({ length: KEPT_AT_ONCE }, some));
  }

  private keepOne(uri: string): Promise<void> {
    const before = this.keeping.get(uri);
    if (before !== undefined) return before;
    const keeping = this.mark(uri).finally(() => this.keeping.delete(uri));
    this.keeping.set(uri, keeping);
    return keeping;
  }

  private async mark(uri: string): Promise<void> {
    if (this.kept.has(uri)) return;
    const key = keptKey(uri);
    if ((await this.store.putIfAbsent(key, Buffer.alloc(0))) === "exists") await this.store.confirm([key]);
    this.remember(uri);
  }

  /**
   * Whether what was found to be held at `since` (ms since the epoch) may have been taken away by now: a process that
   * was frozen for days in between must not promise anything.
   */
  mayBeGone(since: number): boolean {
    return Date.now() - since > this.keepMs / 4;
  }

  /** The payload, verified. Errors: TRB-STORE-FAILED, which says nothing of the payload. */
  async fetch(reference: PayloadReference): Promise<Buffer | Unusable> {
    for (let attempt = 1; ; attempt++) {
      const got = await this.fetchOnce(reference);
      if (got !== "gone") return got;
      // One that was taken away under our eyes has left a later one behind.
      if (attempt === ATTEMPTS) return "missing";
    }
  }

  private async fetchOnce({ uri, sizeBytes, sha256 }: PayloadReference): Promise<Buffer | Unusable | "gone"> {
    let instead: Unusable | "gone" = "missing";
    for await (const { key, bytes } of this.places(uri)) {
      if (bytes !== sizeBytes) {
        // Nothing but what the collector leaves is empty. Before the bytes take memory:
        if (bytes > 0 && instead === "missing") instead = "corrupt";
        continue;
      }
      const payload = await this.store.get(key);
      if (payload?.length === sizeBytes && (await hashOf(payload)).equals(sha256)) return payload;
      if (payload === undefined || payload.length === 0) instead = "gone";
      else if (instead === "missing") instead = "corrupt";
    }
    return instead;
  }

  private async *places(uri: string): AsyncGenerator<ObjectInfo> {
    const first = await this.store.stat(uri);
    if (first !== undefined) yield first;
    yield* this.store.list(laterPrefix(uri));
  }
}

export type Offer = "held" | PresignedPut | undefined;

async function hashOf(bytes: Buffer): Promise<Buffer> {
  const hash = createHash("sha256");
  for (let at = 0; at < bytes.length; at += HASHED_AT_ONCE) {
    if (at > 0) await setImmediate();
    hash.update(bytes.subarray(at, at + HASHED_AT_ONCE));
  }
  return hash.digest();
}
