import { randomUUID } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdir } from "node:fs/promises";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  DeleteObjectsCommand,
  GetObjectCommand,
  HeadObjectCommand,
  type HeadObjectCommandOutput,
  ListObjectsV2Command,
  PutObjectCommand,
} from "@aws-sdk/client-s3";
import { errno, TributaryError } from "../base/errors.js";
import { checkKey, checkPrefix } from "./keys.js";
import { type MakeRoom, ObjectCache } from "./object-cache.js";
import type { LendOptions, ObjectInfo, ObjectStore, PresignedPut, PutContent } from "./object-store.js";
import { all, S3Connection, type S3Place } from "./s3-connection.js";
import { presignPut } from "./s3-presign.js";
import { S3Uploads } from "./s3-uploads.js";

export interface S3StoreOptions extends S3Place {
  /** Where files for `adopt` are written. */
  readonly staging: string;
  /** Copies of objects on the volume of `staging`; see ObjectCache. */
  readonly cache: { readonly folder: string; readonly user: string; readonly bytes: number };
}

/** Objects that one request lists or deletes at most, by the protocol. */
const PAGE = 1000;
/** Metadata that tells which call put an object. */
const PUT_ID = "tributary-put";
/** Leases of full size that find room beside each other. */
const LEASES = 4;
/** A download that waits for room in the cache gives up later than the cache does. */
const ROOM_MS = 120_000;

/**
 * An object store in a bucket of S3, or of a server that speaks its protocol and honours If-None-Match. What `get` and
 * `list` show is durable, and everybody sees it from the moment its put has ended.
 *
 * A put whose answer was lost is made again under the id of the first try: told then that the object exists, the store
 * reads back whose it is. What is still in doubt after the last try rejects: it may come about yet, once.
 */
export class S3Store implements ObjectStore {
  readonly staging: string;
  readonly leaseBytes: number;
  private readonly s3: S3Connection;
  private readonly uploads: S3Uploads;

  /** Makes no request. Errors: TRB-STORE-FAILED. */
  static async open(options: S3StoreOptions): Promise<S3Store> {
    if (options.prefix !== "") checkKey(options.prefix);
    await mkdir(options.staging, { recursive: true }).catch((cause: unknown) => {
      throw new TributaryError("TRB-STORE-FAILED", `staging: ${errno(cause) ?? "failed"}`, { cause });
    });
    const { endpoint = "", bucket, prefix } = options;
    const place = JSON.stringify([endpoint, bucket, prefix]);
    return new S3Store(options, await ObjectCache.open({ ...options.cache, place }));
  }

  private constructor(
    options: S3StoreOptions,
    readonly cache: ObjectCache,
  ) {
    this.staging = options.staging;
    this.leaseBytes = options.cache.bytes / LEASES;
    this.s3 = new S3Connection(options);
    this.uploads = new S3Uploads(this.s3);
  }

  async get(key: string): Promise<Buffer | undefined> {
    const { client, requests } = this.s3;
    const at = this.s3.at(key);
    return requests.send<Buffer | undefined>(
      "get",
      at.Key,
      async ({ signal, allow }) => {
        const { Body, ContentLength } = await client.send(new GetObjectCommand(at), { abortSignal: signal });
        const length = told(ContentLength, Body);
        allow(requests.timeFor(length));
        return whole(await Body!.transformToByteArray(), length);
      },
      ({ kind }) => (kind === "absent" ? { value: undefined } : undefined),
    );
  }

  async getRange(key: string, start: number, end: number): Promise<Buffer> {
    const { client, requests } = this.s3;
    const at = this.s3.at(key);
    // HTTP has no words for a range of nothing.
    if (end <= start) return Buffer.alloc(0);
    return requests.send("range", at.Key, async ({ signal, allow }) => {
      const command = new GetObjectCommand({ ...at, Range: `bytes=${start}-${end - 1}` });
      const { Body, ContentRange } = await client.send(command, { abortSignal: signal });
      allow(requests.timeFor(end - start));
      const bytes = await Body!.transformToByteArray();
      if (ContentRange?.startsWith(`bytes ${start}-${end - 1}/`) !== true) {
        throw new TributaryError("TRB-STORE-FAILED", "get range: the object is shorter than the range");
      }
      return whole(bytes, end - start);
    });
  }

  async put(key: string, bytes: Uint8Array): Promise<void> {
    await this.s3.put(key, bytes);
    this.cache.drop([key]);
  }

  async putIfAbsent(key: string, bytes: Uint8Array): Promise<"created" | "exists"> {
    const { client, requests } = this.s3;
    const id = randomUUID();
    const put = { ...this.s3.putOf(key, bytes), IfNoneMatch: "*", Metadata: { [PUT_ID]: id } };
    const outcome = await requests.send<"created" | "exists" | "in doubt">(
      "put",
      put.Key,
      async ({ signal, allow }) => {
        allow(requests.timeFor(bytes.length));
        await client.send(new PutObjectCommand(put), { abortSignal: signal });
        return "created";
      },
      ({ kind }, attempt) =>
        kind === "exists" ? { value: attempt === 1 ? "exists" : "in doubt" } : undefined,
    );
    return outcome !== "in doubt" ? outcome : (await this.putIdOf(key)) === id ? "created" : "exists";
  }

  private async putIdOf(key: string): Promise<string | undefined> {
    return (await this.head(key))?.Metadata?.[PUT_ID];
  }

  private head(key: string): Promise<HeadObjectCommandOutput | undefined> {
    const { client, requests } = this.s3;
    const at = this.s3.at(key);
    return requests.send<HeadObjectCommandOutput | undefined>(
      "head",
      at.Key,
      ({ signal }) => client.send(new HeadObjectCommand(at), { abortSignal: signal }),
      ({ kind }) => (kind === "absent" ? { value: undefined } : undefined),
    );
  }

  async stat(key: string): Promise<ObjectInfo | undefined> {
    const found = await this.head(key);
    if (found === undefined) return undefined;
    return { key, bytes: found.ContentLength ?? 0, modifiedAt: found.LastModified?.getTime() ?? 0 };
  }

  presignPut(key: string, content: PutContent, lifeMs: number): Promise<PresignedPut> {
    return presignPut(this.s3, key, content, lifeMs);
  }

  async adopt(files: readonly { readonly localPath: string; readonly key: string }[]): Promise<void> {
    for (const { key } of files) checkKey(key);
    await all(files.map(({ localPath, key }) => this.uploads.file(localPath, key)));
    // What was just written is read next.
    await all(files.map(({ localPath, key }) => this.cache.adopt(key, localPath)));
  }

  /** Copies from the cache; several that want one object share its download. */
  async withLocal<T>(
    keys: readonly string[],
    use: (paths: readonly string[]) => Promise<T>,
    { fresh = false }: LendOptions = {},
  ): Promise<T> {
    for (const key of keys) checkKey(key);
    const fetch = (key: string, path: string, room: MakeRoom) => this.download(key, path, room);
    return fresh ? this.cache.withFresh(keys, fetch, use) : this.cache.withLocal(keys, fetch, use);
  }

  private download(key: string, path: string, room: MakeRoom): Promise<boolean> {
    const { client, requests } = this.s3;
    const at = this.s3.at(key);
    return requests.send<boolean>(
      "get",
      at.Key,
      async ({ signal, allow }) => {
        for (;;) {
          const { Body, ContentLength } = await client.send(new GetObjectCommand(at), {
            abortSignal: signal,
          });
          const stream = Body as Readable;
          stream.on("error", () => undefined);
          const length = told(ContentLength, Body);
          allow(ROOM_MS);
          const made = await room(length).catch((error: unknown) => {
            stream.destroy();
            throw error;
          });
          allow(requests.timeFor(length));
          if (made === "waited") {
            // No server waits as long with its answer; the room stays.
            stream.destroy();
            continue;
          }
          const file = createWriteStream(path);
          await pipeline(stream, file, { signal });
          if (file.bytesWritten !== length) throw new HalfBody();
          return true;
        }
      },
      ({ kind }) => (kind === "absent" ? { value: false } : undefined),
    );
  }

  async *list(prefix: string, startAfter = ""): AsyncGenerator<ObjectInfo> {
    checkPrefix(prefix);
    const { client, requests, bucket } = this.s3;
    const all = this.s3.prefix + prefix;
    let token: string | undefined;
    do {
      const command = new ListObjectsV2Command({
        Bucket: bucket,
        Prefix: all,
        MaxKeys: PAGE,
        ...(startAfter === "" ? {} : { StartAfter: this.s3.prefix + startAfter }),
        ...(token === undefined ? {} : { ContinuationToken: token }),
      });
      const page = await requests.send("list", all, async ({ signal }) => {
        const answer = await client.send(command, { abortSignal: signal });
        // Taken for the end, it would make objects that nobody sees.
        if (answer.IsTruncated === true && answer.NextContinuationToken === undefined) throw new HalfBody();
        return answer;
      });
      for (const { Key = "", Size = 0, LastModified } of page.Contents ?? []) {
        const key = Key.slice(this.s3.prefix.length);
        // What consoles make to show a folder is no object of ours.
        if (key === "" || key.endsWith("/")) continue;
        yield { key, bytes: Size, modifiedAt: LastModified?.getTime() ?? 0 };
      }
      token = page.IsTruncated === true ? page.NextContinuationToken : undefined;
    } while (token !== undefined);
  }

  /** What is seen is durable. */
  async confirm(keys: readonly string[]): Promise<void> {
    for (const key of keys) checkKey(key);
  }

  async delete(keys: readonly string[]): Promise<void> {
    const wholeKeys = keys.map((key) => this.s3.keyOf(key));
    const batches: string[][] = [];
    for (let i = 0; i < keys.length; i += PAGE) batches.push(wholeKeys.slice(i, i + PAGE));
    await all(batches.map((batch) => this.deleteBatch(batch)));
    this.cache.drop(keys);
  }

  private deleteBatch(batch: readonly string[]): Promise<void> {
    const { client, requests, bucket } = this.s3;
    const Delete = { Objects: batch.map((Key) => ({ Key })), Quiet: true };
    return requests.send("delete", batch[0]!, async ({ signal }) => {
      const command = new DeleteObjectsCommand({ Bucket: bucket, Delete });
      const { Errors = [] } = await client.send(command, { abortSignal: signal });
      const failure = Errors.find(({ Code }) => Code !== "NoSuchKey");
      if (failure !== undefined) throw new NotDeleted(failure.Code);
    });
  }

  /** Ends the connections. */
  close(): void {
    this.s3.client.destroy();
  }
}

/** The length that an answer announces. What may be of any length fills memory or disk. Errors: as `whole`. */
function told(length: number | undefined, body: unknown): number {
  if (length !== undefined) return length;
  (body as Readable).destroy();
  throw new HalfBody();
}

/** Errors: HalfBody, which is tried again. */
function whole(bytes: Uint8Array, length: number): Buffer {
  if (bytes.length !== length) throw new HalfBody();
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** An answer that broke off. */
class HalfBody extends Error {
  override readonly name = "HalfBody";
}

/** An object of a request that was carried out otherwise. */
class NotDeleted extends Error {
  readonly $metadata: { readonly httpStatusCode: number };

  constructor(code = "failed") {
    super(code);
    this.name = code;
    this.$metadata = { httpStatusCode: code === "AccessDenied" ? 403 : 500 };
  }
}
