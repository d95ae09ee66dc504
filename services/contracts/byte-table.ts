/**
 * Values by byte-string key, looked up straight from a buffer: no string is made for a key that is known. For the few
 * names that come with every event, such as tenants and entity types. Forgets everything once `max` keys are in, so
 * that senders cannot make it grow.
 */
export class ByteTable<T> {
  private readonly max: number;
  private readonly buckets = new Map<number, { readonly key: Buffer; readonly value: T }[]>();
  private count = 0;

  constructor(max: number) {
    this.max = max;
  }

  get(bytes: Uint8Array, start: number, end: number): T | undefined {
    const bucket = this.buckets.get(hashOf(bytes, start, end));
    if (!bucket) return undefined;
    for (let i = 0; i < bucket.length; i++) {
      const { key, value } = bucket[i]!;
      if (matches(key, bytes, start, end)) return value;
    }
    return undefined;
  }

  /** Adds a key that `get` did not find. */
  add(bytes: Uint8Array, start: number, end: number, value: T): void {
    if (this.count === this.max) {
      this.buckets.clear();
      this.count = 0;
    }
    const hash = hashOf(bytes, start, end);
    const entry = { key: Buffer.from(bytes.subarray(start, end)), value };
    const bucket = this.buckets.get(hash);
    if (bucket) bucket.push(entry);
    else this.buckets.set(hash, [entry]);
    this.count++;
  }
}

/** FNV-1a, kept within the small integers. */
function hashOf(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
  return hash & 0x3fffffff;
}

function matches(key: Buffer, bytes: Uint8Array, start: number, end: number): boolean {
  if (key.length !== end - start) return false;
  for (let i = 0; i < key.length; i++) if (key[i] !== bytes[start + i]) return false;
  return true;
}
