import { afterAll, beforeAll, describe } from "vitest";
import { changeStreamContract } from "../contract/change-stream.js";
import { type KinesisServer, startKinesis } from "../servers/kinesis.js";
import { TestStream } from "../support/kinesis.js";
import { MemoryLeases } from "../support/memory-leases.js";

describe.each([["local"]] as const)("kinesis, %s", (kind) => {
  let server: KinesisServer;
  beforeAll(async () => {
    server = await startKinesis(kind);
  });
  afterAll(() => server?.stop());

  changeStreamContract(
    async () => {
      const { endpoint } = server;
      const stream = await TestStream.create({ endpoint, leases: new MemoryLeases(), maxRecordKiB: 10_240 });
      return {
        openWriter: () => stream.openWriter(),
        openReader: () => stream.openReader(),
        dispose: () => stream.dispose(),
        largeMiB: 12,
        retentionMs: 24 * 3_600_000,
      };
    },
    10 * 1024 * 1024,
  );
});
