import { pino } from "pino";
import { describe } from "vitest";
import { changeStreamContract } from "../../../test/contract/change-stream.js";
import { FakeKinesis } from "../../../test/support/fake-kinesis.js";
import { MemoryLeases } from "../../../test/support/memory-leases.js";
import { KinesisReader } from "./reader.js";
import { KinesisWriter } from "./writer.js";

// Against servers: test/integration/kinesis-contract.test.ts.
describe("kinesis, in memory", () => {
  changeStreamContract(
    async () => {
      const kinesis = new FakeKinesis(4);
      kinesis.maxRecordKiB = 10_240;
      const leases = new MemoryLeases();
      const options = { client: kinesis.client(), stream: "fake", leases: async () => leases };
      const open: { close(): Promise<void> }[] = [];
      const opened = <T extends { close(): Promise<void> }>(it: T): T => {
        open.push(it);
        return it;
      };
      return {
        openWriter: async () => opened(await KinesisWriter.open(options)),
        openReader: async () =>
          opened(await KinesisReader.open({ ...options, log: pino({ level: "silent" }) })),
        retentionMs: 24 * 3_600_000,
        dispose: async () => {
          for (const it of open.reverse()) await it.close();
        },
      };
    },
    10 * 1024 * 1024,
  );
});
