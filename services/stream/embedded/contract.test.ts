import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe } from "vitest";
import { changeStreamContract } from "../../../test/contract/change-stream.js";
import { EmbeddedLogReader } from "./reader.js";
import { EmbeddedLogWriter } from "./writer.js";

describe.each([
  ["large segments", 64 * 1024 * 1024],
  ["tiny segments", 600],
])("embedded, %s", (_, segmentBytes) => {
  changeStreamContract(async () => {
    const folder = await mkdtemp(join(tmpdir(), "tributary-stream-"));
    const open: { close(): Promise<void> }[] = [];
    const opened = <T extends { close(): Promise<void> }>(it: T): T => {
      open.push(it);
      return it;
    };
    return {
      openWriter: async () => opened(await EmbeddedLogWriter.open({ folder, partitions: 4, segmentBytes })),
      openReader: async () => opened(await EmbeddedLogReader.open({ folder, partitions: 4 })),
      dispose: async () => {
        for (const it of open.reverse()) await it.close();
        await rm(folder, { recursive: true });
      },
    };
  });
});
