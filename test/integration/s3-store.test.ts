import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { HeadObjectCommand, ListMultipartUploadsCommand } from "@aws-sdk/client-s3";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { S3Store } from "../../services/storage/s3-store.js";
import { objectStoreContract } from "../contract/object-store.js";
import { startS3 } from "../servers/s3.js";
import { newBucket, S3Fixture, s3Client } from "../support/s3-lake.js";

describe.each(["versitygw", "minio"] as const)("%s", (kind) => {
  let server: Awaited<ReturnType<typeof startS3>>;
  beforeAll(async () => {
    server = await startS3(kind);
  }, 900_000);
  afterAll(() => server?.stop());
  const fixtureOf = async () => new S3Fixture(server.endpoint, await newBucket(server.endpoint));

  describe.each(["", "lakes/one"])("below the prefix %j", (prefix) => {
    objectStoreContract(async () => {
      const fixture = await fixtureOf();
      return {
        openStore: () => fixture.open({ prefix }),
        dispose: async () => fixture.dispose(),
      };
    });
  });

  describe("beyond the port", () => {
    let fixture: S3Fixture;
    let store: S3Store;
    beforeEach(async () => {
      fixture = await fixtureOf();
      store = await fixture.open();
    });
    afterEach(() => fixture.dispose());
    const keys = async (prefix: string, startAfter?: string) => {
      const found: string[] = [];
      for await (const { key } of store.list(prefix, startAfter)) found.push(key);
      return found;
    };

    test("more than a page of objects is listed and deleted", async () => {
      const many = Array.from({ length: 1_050 }, (_, i) => `many/${String(i).padStart(5, "0")}`);
      await Promise.all(many.map((key) => store.put(key, Buffer.from("x"))));
      expect(await keys("many/")).toEqual(many);
      expect(await keys("many/", many[1_020])).toEqual(many.slice(1_021));
      await store.delete(many);
      expect(await keys("")).toEqual([]);
    });

    test("a large file goes up in parts and comes back whole; a small one in one piece", async () => {
      const bytes = randomBytes(40 * 1024 * 1024);
      const localPath = join(store.staging, "large");
      await writeFile(localPath, bytes);
      await writeFile(join(store.staging, "small"), "x");
      await store.adopt([
        { localPath, key: "t/large" },
        { localPath: join(store.staging, "small"), key: "t/small" },
      ]);
      expect(existsSync(localPath)).toBe(false);
      const other = await fixture.open({
        cache: { folder: join(fixture.folder, "other"), user: "u", bytes: 64e6 },
      });
      await other.withLocal(["t/large"], async ([path]) =>
        expect((await readFile(path!)).equals(bytes)).toBe(true),
      );
      expect(
        (await other.getRange("t/large", 16 * 1024 * 1024 - 5, 16 * 1024 * 1024 + 5)).equals(
          bytes.subarray(16 * 1024 * 1024 - 5, 16 * 1024 * 1024 + 5),
        ),
      ).toBe(true);
      const client = s3Client(server.endpoint);
      const head = (Key: string) => client.send(new HeadObjectCommand({ Bucket: fixture.bucket, Key }));
      expect((await head("t/large")).ETag).toMatch(/-3"?$/);
      expect((await head("t/small")).ETag).not.toMatch(/-/);
      const left = await client.send(new ListMultipartUploadsCommand({ Bucket: fixture.bucket }));
      expect(left.Uploads ?? []).toEqual([]);
      client.destroy();
    });

    test("every object has a checksum that the server has checked", async () => {
      await store.put("a", Buffer.from("hello"));
      await store.putIfAbsent("b", Buffer.from("hello"));
      const client = s3Client(server.endpoint);
      for (const Key of ["a", "b"]) {
        const head = new HeadObjectCommand({ Bucket: fixture.bucket, Key, ChecksumMode: "ENABLED" });
        expect((await client.send(head)).ChecksumCRC32).toBe("NhCmhg==");
      }
      client.destroy();
    });
  });
});

describe("20 writers of one key", () => {
  test.each(["versitygw", "minio"] as const)("%s: one wins, 200 rounds", async (kind) => {
    const server = await startS3(kind);
    // Two gateways on one folder; MinIO has one door to its folder.
    const second = kind === "versitygw" ? await startS3(kind, server.data) : undefined;
    const bucket = await newBucket(server.endpoint);
    const doors = [server.endpoint, second?.endpoint ?? server.endpoint].map(
      (endpoint) => new S3Fixture(endpoint, bucket),
    );
    try {
      const stores = await Promise.all(doors.flatMap((door) => [door.open(), door.open()]));
      for (let round = 0; round < 200; round++) {
        const key = `log/${round}.json`;
        const outcomes = await Promise.all(
          Array.from({ length: 20 }, (_, i) =>
            stores[i % stores.length]!.putIfAbsent(key, Buffer.from(`by ${i}`)),
          ),
        );
        const winners = outcomes.flatMap((outcome, i) => (outcome === "created" ? [i] : []));
        expect(winners, key).toHaveLength(1);
        for (const store of stores) expect((await store.get(key))?.toString()).toBe(`by ${winners[0]}`);
      }
    } finally {
      for (const door of doors) door.dispose();
      await second?.stop();
      await server.stop();
    }
  });
});

test("minio: what is put is encrypted with the key that is set, in parts or not", async () => {
  const server = await startS3("minio");
  const fixture = new S3Fixture(server.endpoint, await newBucket(server.endpoint));
  try {
    const store = await fixture.open({ kmsKeyId: "my-key" });
    await store.put("put", Buffer.from("x"));
    await store.putIfAbsent("commit", Buffer.from("x"));
    const localPath = join(store.staging, "large");
    await writeFile(localPath, randomBytes(17 * 1024 * 1024));
    await store.adopt([{ localPath, key: "large" }]);
    const client = s3Client(server.endpoint);
    for (const Key of ["put", "commit", "large"]) {
      const head = await client.send(new HeadObjectCommand({ Bucket: fixture.bucket, Key }));
      expect([head.ServerSideEncryption, head.SSEKMSKeyId]).toEqual([
        "aws:kms",
        expect.stringContaining("my-key"),
      ]);
    }
    client.destroy();
    expect((await store.get("commit"))?.toString()).toBe("x");
  } finally {
    fixture.dispose();
    await server.stop();
  }
});
