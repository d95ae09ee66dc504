import { expect, test } from "vitest";
import { encodeTestEvent, Lake, Random, randomEvents, THING } from "../../test/support/lake.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { TributaryError } from "../base/errors.js";
import type { StreamConsumer } from "../stream/change-stream.js";
import { startIngest } from "./ingest.js";

/** A stream that has forgotten what had not landed: it lets whoever comes in, and has nothing to give. */
class Forgetful extends MemoryReader {
  tries = 0;

  override async consume(): Promise<StreamConsumer> {
    this.tries++;
    return {
      read: async () => {
        throw new TributaryError("TRB-STREAM-FORGOTTEN");
      },
      commit: async () => undefined,
      close: async () => undefined,
    };
  }
}

test("a stream that has forgotten something is told of, tried again, and holds up no other", async () => {
  const lake = await Lake.create();
  const ingest = startIngest(lake.context);
  const well = new MemoryReader("well");
  const forgetful = new Forgetful("forgetful");
  const landing = ingest.land({ reader: well, name: "t", carries: (type) => type === THING });
  await Promise.all([landing, ingest.land({ reader: forgetful, name: "other", carries: () => false })]);
  await expect.poll(() => forgetful.tries, { timeout: 10_000 }).toBeGreaterThan(2);
  for (const event of randomEvents(new Random(1), 20)) well.append(0, encodeTestEvent(event));
  await expect.poll(() => well.caughtUp, { timeout: 10_000 }).toBe(true);
  const { values } = await lake.context.metrics.streamFailures.get();
  expect(values).toEqual([expect.objectContaining({ labels: { stream: "other" } })]);
  expect(values[0]!.value).toBeGreaterThan(1);
  ingest.stop();
  await ingest.done;
});

test("where it is the only stream, ingest ends with it", async () => {
  const lake = await Lake.create();
  const ingest = startIngest(lake.context);
  await ingest.land({ reader: new Forgetful("forgetful"), name: "default", carries: () => true });
  await expect(ingest.done).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
});
