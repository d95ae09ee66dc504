import { crc32 } from "node:zlib";
import { PutObjectCommand, S3Client } from "@aws-sdk/client-s3";
import { checkKey } from "./keys.js";
import { type S3Operation, type S3Outcome, S3Requests } from "./s3-requests.js";

/** A bucket and how it is reached. */
export interface S3Place {
  readonly bucket: string;
  /** Before every key: "", or without a slash at its end. */
  readonly prefix: string;
  /** As the SDK finds it when absent. */
  readonly region?: string | undefined;
  /** URL of a server that is not AWS's. */
  readonly endpoint?: string | undefined;
  readonly forcePathStyle: boolean;
  /** Objects are encrypted with this KMS key; by the bucket's own setting when absent. */
  readonly kmsKeyId?: string | undefined;
  /** Time to the first byte of an answer, and between two of a body, in ms. */
  readonly timeoutMs: number;
  /** Told of each request, tries that are repeated included. */
  readonly onRequest?: (operation: S3Operation, outcome: S3Outcome) => void;
}

const SOCKETS = 128;
const CONNECT_MS = 5_000;

/** The SDK's client for one bucket, and the requests that go through it. Credentials are found by the SDK. */
export class S3Connection {
  readonly client: S3Client;
  readonly requests: S3Requests;
  readonly bucket: string;
  /** "" or with a slash at its end. */
  readonly prefix: string;

  constructor(private readonly place: S3Place) {
    const { timeoutMs, endpoint, onRequest = () => undefined } = place;
    this.bucket = place.bucket;
    this.prefix = place.prefix === "" ? "" : `${place.prefix}/`;
    this.requests = new S3Requests({ timeoutMs, onRequest });
    const agent = { keepAlive: true, maxSockets: SOCKETS };
    // A server of one's own has no regions.
    const region = place.region ?? (endpoint === undefined ? undefined : "us-east-1");
    this.client = new S3Client({
      ...(region === undefined ? {} : { region }),
      ...(endpoint === undefined ? {} : { endpoint }),
      forcePathStyle: place.forcePathStyle,
      // Trying again is for S3Requests.
      maxAttempts: 1,
      // Each put has its checksum in a header; what the SDK would do for streams, a trailer, not every server takes.
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_SUPPORTED",
      requestHandler: {
        connectionTimeout: Math.min(CONNECT_MS, timeoutMs),
        socketTimeout: timeoutMs,
        httpAgent: agent,
        httpsAgent: agent,
      },
    });
  }

  /** The whole key, as the bucket has it. Errors: TRB-STORE-FAILED. */
  keyOf(key: string): string {
    checkKey(key);
    return this.prefix + key;
  }

  at(key: string): { readonly Bucket: string; readonly Key: string } {
    return { Bucket: this.bucket, Key: this.keyOf(key) };
  }

  encryption() {
    const { kmsKeyId } = this.place;
    if (kmsKeyId === undefined) return {};
    return { ServerSideEncryption: "aws:kms", SSEKMSKeyId: kmsKeyId, BucketKeyEnabled: true } as const;
  }

  /** A put of bytes that are in memory. */
  putOf(key: string, bytes: Uint8Array) {
    return {
      ...this.at(key),
      ...this.encryption(),
      Body: bytes,
      ChecksumCRC32: checksum(bytes),
    };
  }

  put(key: string, bytes: Uint8Array): Promise<void> {
    return this.requests.send("put", this.keyOf(key), async ({ signal, allow }) => {
      allow(this.requests.timeFor(bytes.length));
      await this.client.send(new PutObjectCommand(this.putOf(key, bytes)), { abortSignal: signal });
    });
  }
}

/** As S3 has it: the server refuses bytes that do not match, and tells it to whoever gets the object. */
export function checksum(bytes: Uint8Array): string {
  const four = Buffer.alloc(4);
  four.writeUInt32BE(crc32(bytes));
  return four.toString("base64");
}

/** As `Promise.all`, but ends only when all have ended. */
export async function all<T>(work: readonly Promise<T>[]): Promise<T[]> {
  const outcomes = await Promise.allSettled(work);
  return outcomes.map((outcome) => {
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  });
}
