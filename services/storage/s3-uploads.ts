import { type FileHandle, open } from "node:fs/promises";
import {
  AbortMultipartUploadCommand,
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  HeadObjectCommand,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { errno, TributaryError } from "../base/errors.js";
import { Permits } from "../base/permits.js";
import { all, checksum, type S3Connection } from "./s3-connection.js";

/** Larger files go up in parts of this size. */
const PART_BYTES = 16 * 1024 * 1024;
/** Bodies in memory at once, of all uploads. */
const BODIES = 4;

interface Upload {
  readonly Bucket: string;
  readonly Key: string;
  readonly UploadId: string | undefined;
}

/** Local files become objects: each in one request, or in parts where it is large. */
export class S3Uploads {
  private readonly bodies = new Permits(BODIES);

  constructor(private readonly s3: S3Connection) {}

  /** Errors: TRB-STORE-FAILED. */
  async file(path: string, key: string): Promise<void> {
    const file = await open(path, "r").catch((cause: unknown) => {
      throw new TributaryError("TRB-STORE-FAILED", `adopt: ${errno(cause) ?? "failed"}`, { cause });
    });
    try {
      const { size } = await file.stat();
      if (size > PART_BYTES) await this.parts(file, size, key);
      else await this.withBody(file, 0, size, (bytes) => this.s3.put(key, bytes));
    } finally {
      await file.close();
    }
  }

  /** Runs `use` with a piece of a file in memory, in its turn. */
  private async withBody<T>(
    file: FileHandle,
    start: number,
    end: number,
    use: (bytes: Uint8Array) => Promise<T>,
  ): Promise<T> {
    const release = await this.bodies.acquire();
    try {
      const bytes = Buffer.allocUnsafeSlow(end - start);
      const { bytesRead } = await file.read(bytes, 0, bytes.length, start);
      if (bytesRead !== bytes.length) throw new TributaryError("TRB-STORE-FAILED", "adopt: the file is cut");
      return await use(bytes);
    } finally {
      release();
    }
  }

  private async parts(file: FileHandle, size: number, key: string): Promise<void> {
    const { client, requests } = this.s3;
    const { UploadId } = await requests.send("create", this.s3.keyOf(key), ({ signal }) => {
      const options = { ...this.s3.encryption(), ChecksumAlgorithm: "CRC32" } as const;
      const command = new CreateMultipartUploadCommand({ ...this.s3.at(key), ...options });
      return client.send(command, { abortSignal: signal });
    });
    const upload: Upload = { ...this.s3.at(key), UploadId };
    try {
      const pieces = Array.from({ length: Math.ceil(size / PART_BYTES) }, (_, i) => {
        const end = Math.min(size, (i + 1) * PART_BYTES);
        return this.withBody(file, i * PART_BYTES, end, (bytes) => this.part(upload, i + 1, bytes));
      });
      await this.complete(upload, size, await all(pieces));
    } catch (error) {
      // Where even this fails, the bucket's rule for unfinished uploads has to do it.
      await client.send(new AbortMultipartUploadCommand(upload)).catch(() => undefined);
      throw error;
    }
  }

  private part(upload: Upload, PartNumber: number, bytes: Uint8Array): Promise<CompletedPart> {
    const { client, requests } = this.s3;
    return requests.send("upload", upload.Key, async ({ signal, allow }) => {
      allow(requests.timeFor(bytes.length));
      const part = { PartNumber, ChecksumCRC32: checksum(bytes) };
      const command = new UploadPartCommand({ ...upload, ...part, Body: bytes });
      const { ETag } = await client.send(command, { abortSignal: signal });
      return { ...part, ETag };
    });
  }

  private async complete(upload: Upload, size: number, parts: CompletedPart[]): Promise<void> {
    const { client, requests } = this.s3;
    const completed = await requests.send(
      "upload",
      upload.Key,
      async ({ signal, allow }) => {
        // The server puts the parts together before it answers.
        allow(requests.timeFor(size));
        const command = new CompleteMultipartUploadCommand({ ...upload, MultipartUpload: { Parts: parts } });
        await client.send(command, { abortSignal: signal });
        return true;
      },
      // An earlier try whose answer was lost may have done it.
      ({ kind }, attempt) => (kind === "absent" && attempt > 1 ? { value: false } : undefined),
    );
    if (completed) return;
    const { Bucket, Key } = upload;
    const found = await requests.send("head", Key, ({ signal }) =>
      client.send(new HeadObjectCommand({ Bucket, Key }), { abortSignal: signal }),
    );
    if (found.ContentLength !== size)
      throw new TributaryError("TRB-STORE-FAILED", "adopt: the upload is gone");
  }
}
