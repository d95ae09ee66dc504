import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, test } from "vitest";
import { S3Fixture } from "../../test/support/s3-lake.js";

let server: Server | undefined;
let fixture: S3Fixture | undefined;
afterEach(() => {
  fixture?.dispose();
  server?.closeAllConnections();
  server?.close();
});

/** A store of a server that answers like this. */
async function storeOf(answer: RequestListener) {
  const listening = createServer(answer);
  server = listening;
  await new Promise<void>((resolve) => listening.listen(0, "127.0.0.1", resolve));
  const { port } = listening.address() as AddressInfo;
  fixture = new S3Fixture(`http://127.0.0.1:${port}`, "lake");
  return fixture.open({ timeoutMs: 5_000 });
}

test("an object of no announced length is none: it could fill memory and disk", async () => {
  const sent: number[] = [];
  const store = await storeOf((_, response) => {
    const at = sent.push(0) - 1;
    // Chunked, for as long as somebody reads it.
    const pour = () => {
      while (!response.destroyed && response.write(Buffer.alloc(65_536))) sent[at]! += 65_536;
      sent[at]! += 65_536;
    };
    response.on("drain", pour);
    pour();
  });
  await expect(store.get("a/b")).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  await expect(store.withLocal(["a/b"], async () => "read")).rejects.toMatchObject({
    code: "TRB-STORE-FAILED",
  });
  expect(Math.max(...sent), "bytes of an answer, most of them in buffers of sockets").toBeLessThan(32 << 20);
});

test("a listing that says it goes on, but not how, is no whole listing", async () => {
  const page = `<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated>
    <Contents><Key>a/1</Key><Size>1</Size></Contents></ListBucketResult>`;
  const store = await storeOf((_, response) =>
    response.setHeader("content-type", "application/xml").end(page),
  );
  const listed = async () => {
    for await (const _ of store.list("a/"));
  };
  await expect(listed()).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
});
