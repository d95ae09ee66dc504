import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { type PayloadReference, uriOf } from "../contracts/payload-reference.js";
import type { ObjectInfo, ObjectStore } from "../storage/object-store.js";

/** How much is hashed at once, so that others run between: a millisecond or so. */
const HASHED_AT_ONCE = 512 * 1024;

/** Why there is no payload where a reference says; the same whatever else may lie in the store. */
export type Unusable = "missing" | "corrupt";

/**
 * Payloads that are too large to travel with their events: objects by the hash of their bytes, a tenant's own below its
 * id, so that nobody can name another's. They are never changed, and put again only with the same bytes.
 */
export class Offloaded {
  /**
   * What nobody refers to is kept for `keepMs`. An object of half that age is put again by whoever refers to it anew, so
   * that its age tells a collector enough.
   */
  constructor(
    private readonly store: ObjectStore,
    private readonly keepMs: number,
  ) {}

  /** Durable when resolved. Errors: TRB-STORE-FAILED. */
  async put(tenant: string, typeUrl: string, payload: Buffer): Promise<PayloadReference> {
    const sha256 = await hashOf(payload);
    const uri = await this.keep(uriOf(tenant, sha256), payload);
    return { uri, typeUrl, sizeBytes: payload.length, sha256 };
  }

  /** The same for a payload that its producer has put a hash on; false, and nothing is put, when it has another. */
  async putAs(tenant: string, sha256: Buffer, payload: Buffer): Promise<boolean> {
    if (!(await hashOf(payload)).equals(sha256)) return false;
    await this.keep(uriOf(tenant, sha256), payload);
    return true;
  }

  private async keep(uri: string, payload: Buffer): Promise<string> {
    if ((await this.store.putIfAbsent(uri, payload)) === "exists") {
      const found = await this.stat(uri);
      // One of another size is damaged, and mended by this.
      if (found === undefined || found.bytes !== payload.length || this.isOld(found)) {
        await this.store.put(uri, payload);
      } else await this.store.confirm([uri]);
    }
    return uri;
  }

  /**
   * Whether the payload lies there, of the size that the reference says, and will for as long as events wait: one that
   * is old is renewed. Its bytes are looked at by whoever takes it in. Errors: TRB-STORE-FAILED.
   */
  async holds({ uri, sizeBytes }: PayloadReference): Promise<boolean> {
    const found = await this.stat(uri);
    if (found === undefined || found.bytes !== sizeBytes) return false;
    if (this.isOld(found)) {
      const payload = await this.store.get(uri);
      if (payload === undefined) return false;
      await this.store.put(uri, payload);
    } else await this.store.confirm([uri]);
    return true;
  }

  /** The payload, verified. Errors: TRB-STORE-FAILED, which says nothing of the payload. */
  async fetch({ uri, sizeBytes, sha256 }: PayloadReference): Promise<Buffer | Unusable> {
    const found = await this.stat(uri);
    if (found === undefined) return "missing";
    // Before its bytes take memory.
    if (found.bytes !== sizeBytes) return "corrupt";
    const payload = await this.store.get(uri);
    if (payload === undefined) return "missing";
    return payload.length === sizeBytes && (await hashOf(payload)).equals(sha256) ? payload : "corrupt";
  }

  private async stat(key: string): Promise<ObjectInfo | undefined> {
    for await (const info of this.store.list(key)) return info.key === key ? info : undefined;
    return undefined;
  }

  private isOld({ modifiedAt }: ObjectInfo): boolean {
    return Date.now() - modifiedAt > this.keepMs / 2;
  }
}

async function hashOf(bytes: Buffer): Promise<Buffer> {
  const hash = createHash("sha256");
  for (let at = 0; at < bytes.length; at += HASHED_AT_ONCE) {
    if (at > 0) await setImmediate();
    hash.update(bytes.subarray(at, at + HASHED_AT_ONCE));
  }
  return hash.digest();
}
