import { Splitter } from "./splitter.js";

/** A length takes so many bytes at most; nothing is 2^35 bytes long. */
const LENGTH_BYTES = 5;

/** Records of one column, each after its length as a varint (Protobuf's "delimited" form). */
export class FrameSplitter extends Splitter {
  protected readonly isText = false;
  /** Bytes of the open record that are still to come, when it is too long to be kept. */
  private left = 0;
  /** What makes all that follows unreadable. */
  private broken: string | undefined;

  protected scan(): void {
    while (this.broken === undefined) {
      if (this.isLong) {
        const gone = Math.min(this.left, this.used - this.begin);
        this.left -= gone;
        if (this.left > 0) break;
        this.pass(this.begin + gone);
        continue;
      }
      const head = this.length();
      if (head === undefined) break;
      const { body, bytes } = head;
      if (bytes > this.options.maxRecordBytes) {
        this.giveUp(this.used);
        this.left = body - this.begin + bytes;
        continue;
      }
      if (body + bytes > this.used) break;
      this.emit(body + bytes, body + bytes, [body, body + bytes]);
    }
    this.scanned = this.used;
    // What comes after cannot be told from anything else.
    if (this.broken !== undefined) this.begin = this.used;
  }

  protected finish(): string {
    return this.broken ?? "it ends within a record";
  }

  override end(): string | undefined {
    return this.broken ?? super.end();
  }

  private length(): { readonly body: number; readonly bytes: number } | undefined {
    let bytes = 0;
    for (let i = 0; i < LENGTH_BYTES; i++) {
      const at = this.begin + i;
      if (at >= this.used) return undefined;
      const byte = this.arena[at]!;
      bytes += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) return { body: at + 1, bytes };
    }
    this.broken = "a record's length is none";
    return undefined;
  }
}
