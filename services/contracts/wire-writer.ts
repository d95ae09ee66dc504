/**
 * Writes protobuf into one buffer, for those whose writing must cost next to nothing: reading raw back, and workloads
 * that are there to measure something else. The caller knows the fields and the room; nothing is checked.
 */
export class WireWriter {
  /** All the room; what has been written begins it. */
  readonly buffer: Buffer;
  private at = 0;

  /** Room for the largest message, in bytes. */
  constructor(room: number) {
    this.buffer = Buffer.allocUnsafe(room);
  }

  /** Begins a new message. */
  reset(): this {
    this.at = 0;
    return this;
  }

  /** Bytes so far. */
  get length(): number {
    return this.at;
  }

  /** The message so far; holds until the next `reset`. */
  view(): Buffer {
    return this.buffer.subarray(0, this.at);
  }

  /** The message so far, as bytes of its own. */
  copy(): Buffer {
    const copy = Buffer.allocUnsafe(this.at);
    this.buffer.copy(copy, 0, 0, this.at);
    return copy;
  }

  /** A whole number from 0 to 2^53 - 1. */
  varint(value: number): this {
    let rest = value;
    for (; rest > 0x7fffffff; rest = Math.floor(rest / 128)) this.buffer[this.at++] = (rest % 128) | 128;
    for (; rest > 127; rest >>>= 7) this.buffer[this.at++] = (rest & 127) | 128;
    this.buffer[this.at++] = rest;
    return this;
  }

  /** A number of 64 bits, as two unsigned halves. */
  varint64(low: number, high: number): this {
    let [lo, hi] = [low, high];
    while (hi !== 0 || lo >= 0x80) {
      this.buffer[this.at++] = (lo & 0x7f) | 0x80;
      lo = ((lo >>> 7) | (hi << 25)) >>> 0;
      hi >>>= 7;
    }
    this.buffer[this.at++] = lo;
    return this;
  }

  /** Bytes as they are, without a length. */
  raw(source: Uint8Array, start = 0, end = source.length): this {
    this.buffer.set(start === 0 && end === source.length ? source : source.subarray(start, end), this.at);
    this.at += end - start;
    return this;
  }

  bytes(field: number, source: Uint8Array, start = 0, end = source.length): this {
    return this.varint(field * 8 + 2)
      .varint(end - start)
      .raw(source, start, end);
  }

  /** A short text of ASCII alone. */
  ascii(field: number, text: string): this {
    this.varint(field * 8 + 2).varint(text.length);
    for (let i = 0; i < text.length; i++) this.buffer[this.at++] = text.charCodeAt(i);
    return this;
  }

  number(field: number, value: number): this {
    return this.varint(field * 8).varint(value);
  }

  /** A Timestamp; seconds may be negative. */
  time(field: number, seconds: number, nanos = 0): this {
    this.varint(field * 8 + 2);
    const length = this.at++;
    if (seconds !== 0) this.varint(8).varint64(seconds >>> 0, Math.floor(seconds / 2 ** 32) >>> 0);
    if (nanos !== 0) this.number(2, nanos);
    this.buffer[length] = this.at - length - 1;
    return this;
  }
}
