/**
 * Writes protobuf into one buffer, for those whose writing must cost next to nothing: reading raw back, payloads from
 * columns, and workloads that are there to measure something else. The caller knows the fields, and knows the room or
 * asks for it (`ensure`): nothing is checked.
 */
export class WireWriter {
  /** All the room; what has been written begins it. Another one after `ensure` had to make room. */
  buffer: Buffer;
  private data: DataView;
  private at = 0;

  /** Room for the largest message, in bytes. */
  constructor(room: number) {
    this.buffer = Buffer.allocUnsafe(room);
    this.data = viewOf(this.buffer);
  }

  /** Begins a new message. */
  reset(): this {
    this.at = 0;
    return this;
  }

  /** Makes room for so many bytes more. */
  ensure(bytes: number): this {
    if (this.at + bytes > this.buffer.length) {
      const grown = Buffer.allocUnsafe(Math.max(this.buffer.length * 2, this.at + bytes));
      this.buffer.copy(grown, 0, 0, this.at);
      this.buffer = grown;
      this.data = viewOf(grown);
    }
    return this;
  }

  /** Forgets what was written behind the first `length` bytes. */
  rewind(length: number): void {
    this.at = length;
  }

  /** Bytes so far. */
  get length(): number {
    return this.at;
  }

  /** Four bytes from here on, the lowest first; behind what was written they may be any. Room for them is there. */
  word(at: number): number {
    return this.data.getInt32(at, true);
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
    if (value < 0x80) {
      this.buffer[this.at++] = value;
      return this;
    }
    let rest = value;
    for (; rest > 0x7fffffff; rest = Math.floor(rest / 128)) this.buffer[this.at++] = (rest % 128) | 128;
    for (; rest > 127; rest >>>= 7) this.buffer[this.at++] = (rest & 127) | 128;
    this.buffer[this.at++] = rest;
    return this;
  }

  /** A number of 64 bits, as two halves, whatever their signs. */
  varint64(low: number, high: number): this {
    const { buffer } = this;
    let { at } = this;
    let lo = low | 0;
    let hi = high | 0;
    while (hi !== 0 || (lo & ~0x7f) !== 0) {
      buffer[at++] = (lo & 0x7f) | 0x80;
      lo = (lo >>> 7) | (hi << 25);
      hi >>>= 7;
    }
    buffer[at++] = lo;
    this.at = at;
    return this;
  }

  fixed32(word: number): this {
    this.data.setInt32(this.at, word, true);
    this.at += 4;
    return this;
  }

  /** Begins something that its length comes before, behind its tag: what is returned is for `close`. */
  open(): number {
    return this.at++;
  }

  /** Puts the length before what was written since `open`; takes up to four bytes more of room. */
  close(opened: number): this {
    const length = this.at - opened - 1;
    if (length < 0x80) {
      this.buffer[opened] = length;
      return this;
    }
    let more = 1;
    for (let rest = length >>> 14; rest > 0; rest >>>= 7) more++;
    this.ensure(more);
    this.buffer.copyWithin(opened + 1 + more, opened + 1, this.at);
    this.at = opened;
    this.varint(length);
    this.at += length;
    return this;
  }

  /** Bytes as they are, without a length. */
  raw(source: Uint8Array, start = 0, end = source.length): this {
    this.buffer.set(start === 0 && end === source.length ? source : source.subarray(start, end), this.at);
    this.at += end - start;
    return this;
  }

  /** Up to twelve bytes, as three words with the first byte lowest; takes room for twelve. */
  inline(bytes: number, first: number, second: number, third: number): this {
    const { data, at } = this;
    data.setInt32(at, first, true);
    data.setInt32(at + 4, second, true);
    data.setInt32(at + 8, third, true);
    this.at = at + bytes;
    return this;
  }

  /** Four bytes or more, word by word, which costs no call; returns all words or-ed together. */
  words(source: DataView, start: number, bytes: number): number {
    const { data, at } = this;
    const last = bytes - 4;
    let all = 0;
    for (let i = 0; i < last; i += 4) {
      const word = source.getInt32(start + i, true);
      all |= word;
      data.setInt32(at + i, word, true);
    }
    const word = source.getInt32(start + last, true);
    data.setInt32(at + last, word, true);
    this.at = at + bytes;
    return all | word;
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
    return this.varint(field * 8 + 2).seconds(seconds, nanos);
  }

  /** The length and the fields of a Timestamp or Duration; both numbers may be negative. */
  seconds(seconds: number, nanos: number): this {
    const opened = this.open();
    if (seconds !== 0) this.varint(8).varint64(seconds, Math.floor(seconds / 2 ** 32));
    if (nanos !== 0) this.varint(16).varint64(nanos, nanos < 0 ? -1 : 0);
    return this.close(opened);
  }
}

const viewOf = ({ buffer, byteOffset, length }: Buffer): DataView => new DataView(buffer, byteOffset, length);
