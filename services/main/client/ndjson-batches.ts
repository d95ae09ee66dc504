import { createHash } from "node:crypto";
import { createReadStream, type Stats } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import type { Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { errno, TributaryError } from "../../base/errors.js";

/** Lines that go into one request. */
export interface LineBatch {
  /** Whole lines, each with its line break; blank ones are left out. */
  readonly body: Buffer;
  /** The number of each line of the body in the input, from 1. */
  readonly lineNumbers: readonly number[];
  /** Lines and unpacked bytes of the input up to the end of the batch: where the next one begins. */
  readonly end: InputOffset;
  /** Bytes of the input as it is stored that had been read when the batch was cut. */
  readonly storedBytes: number;
  /** Lines too long to be sent, which are not in the body. */
  readonly tooLong: readonly number[];
}

export interface InputOffset {
  readonly lines: number;
  readonly bytes: number;
}

/** A file to read from, with what tells it from another of that name. */
export interface InputFile {
  readonly path: string;
  readonly size: number;
  readonly modifiedMs: number;
  /** SHA-256 of the first 64 KiB. */
  readonly head: string;
  readonly gzip: boolean;
}

const MAX_LINE_BYTES = 64 * 1024 * 1024;
const HEAD_BYTES = 64 * 1024;

/** Errors: TRB-CLI-SOURCE. */
export async function describeInput(path: string): Promise<InputFile> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path);
    const stats: Stats = await handle.stat();
    if (stats.isDirectory()) throw new TributaryError("TRB-CLI-SOURCE", `${path}: is a folder`);
    const { bytesRead, buffer } = await handle.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0);
    const head = buffer.subarray(0, bytesRead);
    return {
      path,
      size: stats.size,
      modifiedMs: stats.mtimeMs,
      head: createHash("sha256").update(head).digest("hex"),
      gzip: isGzip(head),
    };
  } catch (cause) {
    throw unreadable(path, cause);
  } finally {
    await handle?.close();
  }
}

export interface BatchLimits {
  readonly lines: number;
  readonly bytes: number;
}

/** The batches of a file from `from` on. Errors: TRB-CLI-SOURCE when it cannot be read or unpacked to its end. */
export function fileBatches(
  file: InputFile,
  from: InputOffset,
  limits: BatchLimits,
): AsyncGenerator<LineBatch> {
  // Packed bytes have to be unpacked from the start; plain ones are read from where it goes on.
  const stream = createReadStream(file.path, {
    start: file.gzip ? 0 : from.bytes,
    highWaterMark: 256 * 1024,
  });
  const counted = counting(stream, file.gzip ? 0 : from.bytes);
  return cut(file.path, counted, file.gzip ? unpacked(counted, stream) : counted, from, limits, file.gzip);
}

/** The batches of a stream; gzip is told by its first bytes. Errors: TRB-CLI-SOURCE. */
export async function* streamBatches(stream: Readable, limits: BatchLimits): AsyncGenerator<LineBatch> {
  const counted = counting(stream, 0);
  const start = { lines: 0, bytes: 0 };
  const chunks = counted[Symbol.asyncIterator]();
  let first: Buffer = Buffer.alloc(0);
  // A pipe may hand over the two magic bytes one by one.
  while (first.length < 2) {
    const { value, done } = await chunks.next();
    if (done) break;
    first = Buffer.concat([first, value]);
  }
  const whole = (async function* () {
    yield first;
    for (let next = await chunks.next(); !next.done; next = await chunks.next()) yield next.value;
  })();
  const source = isGzip(first) ? unpacked(whole, stream) : whole;
  yield* cut("standard input", counted, source, start, limits, false);
}

const isGzip = (head: Uint8Array): boolean => head[0] === 0x1f && head[1] === 0x8b;

interface Counted extends AsyncIterable<Buffer> {
  readonly bytes: number;
}

function counting(stream: Readable, from: number): Counted {
  const counted = {
    bytes: from,
    async *[Symbol.asyncIterator]() {
      for await (const chunk of stream) {
        const bytes = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk as string);
        counted.bytes += bytes.length;
        yield bytes;
      }
    },
  };
  return counted;
}

async function* unpacked(source: AsyncIterable<Buffer>, stream: Readable): AsyncGenerator<Buffer> {
  const gunzip = createGunzip();
  const feeding = (async () => {
    try {
      for await (const chunk of source) {
        if (gunzip.destroyed) return;
        if (!gunzip.write(chunk)) await new Promise<void>((go) => gunzip.once("drain", go).once("close", go));
      }
      gunzip.end();
    } catch (error) {
      gunzip.destroy(error as Error);
    }
  })();
  try {
    for await (const chunk of gunzip) yield chunk as Buffer;
    await feeding;
  } finally {
    gunzip.destroy();
    stream.destroy();
  }
}

async function* cut(
  name: string,
  stored: Counted,
  source: AsyncIterable<Buffer>,
  from: InputOffset,
  limits: BatchLimits,
  skip: boolean,
): AsyncGenerator<LineBatch> {
  const cutter = new Cutter(from, limits);
  let ahead = skip ? from.bytes : 0;
  try {
    for await (const chunk of source) {
      if (ahead >= chunk.length) {
        ahead -= chunk.length;
        continue;
      }
      cutter.take(ahead > 0 ? chunk.subarray(ahead) : chunk);
      ahead = 0;
      for (const batch of cutter.full) yield { ...batch, storedBytes: stored.bytes };
      cutter.full = [];
    }
  } catch (cause) {
    throw unreadable(name, cause);
  }
  cutter.end();
  for (const batch of cutter.full) yield { ...batch, storedBytes: stored.bytes };
}

/** Cuts chunks into lines, and lines into batches. */
class Cutter {
  /** Batches that are complete; the reader takes them away. */
  full: Omit<LineBatch, "storedBytes">[] = [];
  private readonly limits: BatchLimits;
  private line: Buffer[] = [];
  private lineBytes = 0;
  private parts: Buffer[] = [];
  private partBytes = 0;
  private lineNumbers: number[] = [];
  private tooLong: number[] = [];
  private lines: number;
  private bytes: number;

  constructor(from: InputOffset, limits: BatchLimits) {
    this.limits = limits;
    this.lines = from.lines;
    this.bytes = from.bytes;
  }

  take(chunk: Buffer): void {
    let start = 0;
    for (let at = chunk.indexOf(0x0a); at >= 0; at = chunk.indexOf(0x0a, start)) {
      this.piece(chunk.subarray(start, at + 1));
      this.endLine();
      start = at + 1;
    }
    if (start < chunk.length) this.piece(chunk.subarray(start));
  }

  /** Completes what is left, a last line without a line break included. */
  end(): void {
    if (this.lineBytes > 0) {
      this.piece(Buffer.from("\n"));
      this.bytes--;
      this.endLine();
    }
    if (this.lineNumbers.length + this.tooLong.length > 0) this.full.push(this.batch());
  }

  private piece(piece: Buffer): void {
    this.bytes += piece.length;
    this.lineBytes += piece.length;
    if (this.lineBytes <= MAX_LINE_BYTES) this.line.push(piece);
    else this.line = [];
  }

  private endLine(): void {
    const length = this.lineBytes;
    const pieces = this.line;
    this.line = [];
    this.lineBytes = 0;
    if (length <= MAX_LINE_BYTES) {
      const line = withoutMark(pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces), this.lines === 0);
      if (!isBlank(line)) {
        // A batch that this line would overfill goes without it; a line alone may be as long as it likes.
        if (this.partBytes > 0 && this.partBytes + line.length > this.limits.bytes) {
          this.full.push(this.batch(length));
        }
        this.parts.push(line);
        this.partBytes += line.length;
        this.lineNumbers.push(this.lines + 1);
      }
    } else this.tooLong.push(this.lines + 1);
    this.lines++;
    if (this.lineNumbers.length >= this.limits.lines) this.full.push(this.batch());
  }

  /** `after`: bytes read since the batch's last line. */
  private batch(after = 0): Omit<LineBatch, "storedBytes"> {
    const batch = {
      body: Buffer.concat(this.parts, this.partBytes),
      lineNumbers: this.lineNumbers,
      tooLong: this.tooLong,
      end: { lines: this.lines, bytes: this.bytes - after },
    };
    this.parts = [];
    this.partBytes = 0;
    this.lineNumbers = [];
    this.tooLong = [];
    return batch;
  }
}

/** A byte order mark stands before the first line of some files. */
const withoutMark = (line: Buffer, first: boolean): Buffer =>
  first && line[0] === 0xef && line[1] === 0xbb && line[2] === 0xbf ? line.subarray(3) : line;

/** As the server sees it. */
function isBlank(line: Buffer): boolean {
  for (const byte of line) if (byte !== 0x20 && byte !== 0x09 && byte !== 0x0d && byte !== 0x0a) return false;
  return true;
}

function unreadable(name: string, cause: unknown): TributaryError {
  if (cause instanceof TributaryError) return cause;
  const code = errno(cause);
  const reason =
    code === "ENOENT"
      ? "no such file"
      : code?.startsWith("Z_")
        ? "the gzip data is damaged or cut short"
        : `cannot be read (${code ?? "unknown reason"})`;
  return new TributaryError("TRB-CLI-SOURCE", `${name}: ${reason}`, { cause });
}
