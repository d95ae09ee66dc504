import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import { S3Store, type S3StoreOptions } from "../../services/storage/s3-store.js";
import { credentials } from "../servers/s3.js";
import { readForeign } from "./foreign.js";

Object.assign(process.env, credentials);

/** A client of the test's own. */
export const s3Client = (endpoint: string): S3Client =>
  new S3Client({ endpoint, region: "us-east-1", forcePathStyle: true });

/** Makes a bucket; resolves to its name. */
export async function newBucket(endpoint: string): Promise<string> {
  const bucket = `b${randomBytes(6).toString("hex")}`;
  const client = s3Client(endpoint);
  await client.send(new CreateBucketCommand({ Bucket: bucket }));
  client.destroy();
  return bucket;
}

export interface S3Place {
  readonly endpoint: string;
  readonly bucket: string;
  readonly prefix: string;
}

/** Settings of a process whose lake lies there, as variables. */
export const onS3 = ({ endpoint, bucket, prefix }: S3Place): NodeJS.ProcessEnv => ({
  ...credentials,
  AWS_REGION: "us-east-1",
  TRIBUTARY_STORAGE__KIND: "s3",
  TRIBUTARY_STORAGE__S3__BUCKET: bucket,
  TRIBUTARY_STORAGE__S3__PREFIX: prefix,
  TRIBUTARY_STORAGE__S3__ENDPOINT: endpoint,
  TRIBUTARY_STORAGE__S3__FORCE_PATH_STYLE: "true",
});

/** Rows of a table of that lake, by its root, as deltalake reads them. */
export const readOnS3 = (
  { endpoint, bucket, prefix }: S3Place,
  root: string,
): Promise<Record<string, unknown>[]> =>
  readForeign(`s3://${bucket}/${prefix}/${root}`, "SELECT * FROM t", {
    ...credentials,
    AWS_ENDPOINT_URL: endpoint,
    AWS_ALLOW_HTTP: "true",
    AWS_REGION: "us-east-1",
  });

/** Stores on one bucket, each as a process of its own would open it. */
export class S3Fixture {
  readonly folder = mkdtempSync(join(tmpdir(), "tributary-s3-"));
  private readonly stores: S3Store[] = [];

  constructor(
    readonly endpoint: string,
    readonly bucket: string,
  ) {}

  async open(options: Partial<S3StoreOptions> = {}): Promise<S3Store> {
    const user = `user-${this.stores.length}`;
    const store = await S3Store.open({
      bucket: this.bucket,
      prefix: "",
      endpoint: this.endpoint,
      forcePathStyle: true,
      timeoutMs: 10_000,
      staging: join(this.folder, "staging", user),
      cache: { folder: join(this.folder, "cache"), user, bytes: 64 * 1024 * 1024 },
      ...options,
    });
    this.stores.push(store);
    return store;
  }

  dispose(): void {
    for (const store of this.stores) store.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
