/**
 * Writes protobuf into one buffer that is used again and again: a workload must cost less than what it is there to
 * measure. The caller knows the fields; nothing is checked.
 */
export class WireWriter {
  private buffer: Buffer;
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

  /** A Timestamp from 1970 on. */
  time(field: number, seconds: number, nanos = 0): this {
    this.varint(field * 8 + 2);
    const length = this.at++;
    this.number(1, seconds);
    if (nanos !== 0) this.number(2, nanos);
    this.buffer[length] = this.at - length - 1;
    return this;
  }
}
