import { randomBytes } from "node:crypto";
import { assert } from "../base/errors.js";
import { HASH1, HASH2 } from "./order.js";

/**
 * Writes 64 bits of hash of bytes[start, end) to words[at + HASH1 …]; the slot, which is no secret, makes them 96.
 * Murmur3-like rounds over three 32-bit lanes, seeded per process: the index is a cache that never outlives the
 * process, and an unknown seed keeps a producer from choosing ids that collide. A process tells the seed to those alone
 * that make records for it. Tenants are compared exactly, so that even a collision could only confuse two entities of
 * one tenant.
 */
export type EntityHash = (
  bytes: Uint8Array,
  start: number,
  end: number,
  words: Uint32Array,
  at: number,
) => void;

export type HashSeed = readonly [number, number, number];

const drawn = randomBytes(12);
let [seed0, seed1, seed2]: HashSeed = [drawn.readInt32LE(0), drawn.readInt32LE(4), drawn.readInt32LE(8)];
let isUsed = false;

/** A secret between processes: whoever knows it can choose ids that collide. */
export const hashSeed = (): HashSeed => [seed0, seed1, seed2];

/** Hashes from now on as the process does that told its seed. Before anything is hashed here. */
export function useHashSeed(seed: HashSeed): void {
  assert(!isUsed, "what was hashed would be found no more");
  [seed0, seed1, seed2] = seed;
}

// Odd, so that multiplying by them loses nothing.
const C1 = 0x239b961b;
const C2 = 0xab0e9789 | 0;
const C3 = 0x38b34ae5;
const C4 = 0xa1e38b93 | 0;

export const entityHash: EntityHash = (bytes, start, end, words, at) => {
  let a = seed0;
  let b = seed1;
  let c = seed2;
  let p = start;
  const whole = end - ((end - start) & 3);
  for (; p < whole; p += 4) {
    const k = bytes[p]! | (bytes[p + 1]! << 8) | (bytes[p + 2]! << 16) | (bytes[p + 3]! << 24);
    a = lane(a ^ round(k, C1, C2), 13, 0x561ccd1b) + b;
    b = lane(b ^ round(k, C2, C3), 15, 0x0bcaa747) + c;
    c = lane(c ^ round(k, C3, C4), 17, 0x96cd1c35) + a;
  }
  let tail = 0;
  for (let shift = 0; p < end; p++, shift += 8) tail |= bytes[p]! << shift;
  // The length goes into one lane: in all of them it could cancel itself out when they are added up.
  a ^= round(tail, C1, C2) ^ (end - start);
  b ^= round(tail, C2, C3);
  c ^= round(tail, C3, C4);
  a += b + c;
  b = mix(b + a);
  c = mix(c + b);
  words[at + HASH1] = b;
  words[at + HASH2] = c;
};

const round = (k: number, first: number, second: number): number => {
  const product = Math.imul(k, first);
  return Math.imul((product << 15) | (product >>> 17), second);
};

const lane = (h: number, turn: number, constant: number): number =>
  (Math.imul((h << turn) | (h >>> (32 - turn)), 5) + constant) | 0;

const mix = (h: number): number => {
  let x = h;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
};

/** Tenant names ↔ small numbers, looked up by bytes without making a string. */
export class TenantOrdinals {
  private slots = new Int32Array(1024).fill(-1);
  private readonly names: Buffer[] = [];

  constructor() {
    isUsed = true;
  }

  nameOf(ordinal: number): Uint8Array {
    return this.names[ordinal]!;
  }

  of(bytes: Uint8Array, start: number, end: number): number {
    const mask = this.slots.length - 1;
    let slot = hashName(bytes, start, end) & mask;
    for (;;) {
      const ordinal = this.slots[slot]!;
      if (ordinal < 0) break;
      if (equal(this.names[ordinal]!, bytes, start, end)) return ordinal;
      slot = (slot + 1) & mask;
    }
    const ordinal = this.names.length;
    this.names.push(Buffer.from(bytes.subarray(start, end)));
    this.slots[slot] = ordinal;
    if (this.names.length * 2 > this.slots.length) this.grow();
    return ordinal;
  }

  private grow(): void {
    const slots = new Int32Array(this.slots.length * 2).fill(-1);
    for (const [ordinal, name] of this.names.entries()) {
      let slot = hashName(name, 0, name.length) & (slots.length - 1);
      while (slots[slot]! >= 0) slot = (slot + 1) & (slots.length - 1);
      slots[slot] = ordinal;
    }
    this.slots = slots;
  }
}

function hashName(bytes: Uint8Array, start: number, end: number): number {
  let h = seed0;
  for (let p = start; p < end; p++) h = Math.imul(h ^ bytes[p]!, 0x01000193);
  return mix(h);
}

function equal(name: Buffer, bytes: Uint8Array, start: number, end: number): boolean {
  if (name.length !== end - start) return false;
  for (let i = 0; i < name.length; i++) if (name[i] !== bytes[start + i]) return false;
  return true;
}
