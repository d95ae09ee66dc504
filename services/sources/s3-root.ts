import { createWriteStream } from "node:fs";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { GetObjectCommand, ListObjectsV2Command, type ListObjectsV2CommandOutput } from "@aws-sdk/client-s3";
import { errno, hasCode, TributaryError } from "../base/errors.js";
import type { S3Connection } from "../storage/s3-connection.js";
import {
  byPath,
  changed,
  type FoundFile,
  insideLake,
  isHidden,
  type SourceRoot,
  shown,
  tableBelow,
} from "./root.js";
import type { Scratch } from "./scratch.js";

const PAGE = 1000;
/** Pieces come of 64 KB: each written by itself would cost a third more. */
const WRITE_BYTES = 1024 * 1024;

/** The lake's place in a bucket; `prefix` is "" or without a slash at its end. */
export interface LakeBucket {
  readonly bucket: string;
  readonly prefix: string;
}

/** Exports in a bucket. Files are copied to the local disk to be read: whoever reads them has no network. */
export class S3Root implements SourceRoot {
  readonly inPlace = false;

  /** `lake` is told when the lake lies in a bucket, too; of which server does not matter, one may have two names. */
  constructor(
    readonly name: string,
    private readonly s3: S3Connection,
    private readonly scratch: Scratch,
    private readonly lake: LakeBucket | undefined,
  ) {}

  async list(path: string): Promise<FoundFile[]> {
    this.requireApart(path);
    const whole = this.keyOf(path);
    const exact = path === "" ? undefined : (await this.page(whole, 1)).Contents?.[0];
    if (exact?.Key === whole) return [this.found(path, exact)];
    const files: FoundFile[] = [];
    const above = this.aboveOf(path);
    let token: string | undefined;
    do {
      const page = await this.page(above, PAGE, token);
      for (const object of page.Contents ?? []) {
        const below = object.Key!.slice(above.length);
        const [, table] = /^(.+)\/_delta_log\//.exec(below) ?? [];
        if (table !== undefined) throw tableBelow(this.name, path === "" ? table : `${path}/${table}`);
        // What consoles make to show a folder is no file.
        if (below === "" || below.endsWith("/") || below.split("/").some(isHidden)) continue;
        files.push(this.found(path === "" ? below : `${path}/${below}`, object));
      }
      token = page.IsTruncated === true ? page.NextContinuationToken : undefined;
    } while (token !== undefined);
    return files.sort(byPath);
  }

  async holds(path: string): Promise<boolean> {
    this.requireApart(path);
    const page = await this.page(this.aboveOf(path), 1);
    return (page.Contents ?? []).length > 0;
  }

  withLocal<T>(files: readonly FoundFile[], use: (paths: readonly string[]) => Promise<T>): Promise<T> {
    return this.scratch.with(
      files.map(({ bytes }) => bytes),
      async (paths) => {
        for (const [at, file] of files.entries()) await this.download(file, paths[at]!);
        return use(paths);
      },
    );
  }

  private keyOf(path: string): string {
    return path === "" ? this.s3.prefix.replace(/\/$/, "") : this.s3.prefix + path;
  }

  /** What the keys of all below begin with. */
  private aboveOf(path: string): string {
    return path === "" ? this.s3.prefix : `${this.keyOf(path)}/`;
  }

  /** Errors: TRB-SOURCE-LAKE. */
  private requireApart(path: string): void {
    const { lake } = this;
    if (lake?.bucket !== this.s3.bucket) return;
    const own = lake.prefix === "" ? "" : `${lake.prefix}/`;
    const place = this.keyOf(path) === "" ? "" : `${this.keyOf(path)}/`;
    if (place.startsWith(own) || own.startsWith(place)) throw insideLake(this.name, path);
  }

  private page(prefix: string, MaxKeys: number, token?: string): Promise<ListObjectsV2CommandOutput> {
    const { client, requests, bucket: Bucket } = this.s3;
    const command = new ListObjectsV2Command({
      Bucket,
      Prefix: prefix,
      MaxKeys,
      ...(token === undefined ? {} : { ContinuationToken: token }),
    });
    return this.guard(this.name, () =>
      requests.send("list", prefix, ({ signal }) => client.send(command, { abortSignal: signal })),
    );
  }

  private found(
    path: string,
    { ETag, Size }: { ETag?: string | undefined; Size?: number | undefined },
  ): FoundFile {
    if (ETag === undefined || Size === undefined) {
      const reason = "the server's list does not tell its ETag and size";
      throw new TributaryError("TRB-SOURCE-UNREADABLE", `${shown(this.name, path)}: ${reason}`);
    }
    return { path, bytes: Size, identity: `${ETag}-${Size}` };
  }

  /** Errors: TRB-SOURCE-CHANGED, TRB-SOURCE-UNREADABLE. */
  private async download({ path, bytes, identity }: FoundFile, to: string): Promise<void> {
    const { client, requests, bucket: Bucket } = this.s3;
    const Key = this.keyOf(path);
    const IfMatch = identity.slice(0, identity.lastIndexOf("-"));
    const outcome = await this.guard(shown(this.name, path), () =>
      requests.send<"whole" | "gone" | "changed">(
        "get",
        Key,
        async ({ signal, allow }) => {
          const command = new GetObjectCommand({ Bucket, Key, IfMatch });
          const { Body, ContentLength, ETag } = await client.send(command, { abortSignal: signal });
          const stream = Body as Readable;
          stream.on("error", () => undefined);
          // A server that does not know If-Match sends what it has.
          if (ContentLength !== bytes || (ETag ?? IfMatch) !== IfMatch) {
            stream.destroy();
            return "changed";
          }
          allow(requests.timeFor(bytes));
          const file = createWriteStream(to, { mode: 0o600, highWaterMark: WRITE_BYTES });
          await pipeline(stream, file, { signal });
          if (file.bytesWritten !== bytes) throw new HalfBody();
          return "whole";
        },
        ({ kind }) =>
          kind === "absent" ? { value: "gone" } : kind === "exists" ? { value: "changed" } : undefined,
      ),
    );
    if (outcome === "gone") throw changed(this.name, path, "it is gone");
    if (outcome === "changed") throw changed(this.name, path);
  }

  private async guard<T>(where: string, step: () => Promise<T>): Promise<T> {
    try {
      return await step();
    } catch (cause) {
      if (!hasCode(cause, "TRB-STORE-FAILED")) throw cause;
      const full = errno(cause.cause) === "ENOSPC";
      throw new TributaryError(
        full ? "TRB-SOURCE-SCRATCH" : "TRB-SOURCE-UNREADABLE",
        `${where}: ${cause.message}`,
        {
          cause,
        },
      );
    }
  }
}

/** An answer that broke off, which is asked for again. */
class HalfBody extends Error {
  override readonly name = "HalfBody";
}
