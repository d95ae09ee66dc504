import { expect, test } from "vitest";
import { encodeTestEvent, Lake, Random, randomEvents, THING } from "../../test/support/lake.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import type { StreamConsumer } from "../stream/change-stream.js";
import { startIngest } from "./ingest.js";

/** A stream that lets whoever comes in, and cannot be read: for good. */
class Unreadable extends MemoryReader {
  tries = 0;

  constructor(
    name: string,
    private readonly code: Code,
  ) {
    super(name);
  }

  override async consume(): Promise<StreamConsumer> {
    this.tries++;
    return {
      read: async () => {
        throw new TributaryError(this.code);
      },
      commit: async () => undefined,
      close: async () => undefined,
    };
  }
}

const CODES: readonly Code[] = ["TRB-STREAM-FORGOTTEN", "TRB-STREAM-CORRUPT"];

test.each(CODES)("a stream that ends in %s is told of, tried again, and holds up no other", async (code) => {
  const lake = await Lake.create();
  const ingest = startIngest(lake.context);
  const well = new MemoryReader("well");
  const unreadable = new Unreadable("unreadable", code);
  const landing = ingest.land({ reader: well, name: "t", carries: (type) => type === THING });
  await Promise.all([landing, ingest.land({ reader: unreadable, name: "other", carries: () => false })]);
  await expect.poll(() => unreadable.tries, { timeout: 10_000 }).toBeGreaterThan(2);
  for (const event of randomEvents(new Random(1), 20)) well.append(0, encodeTestEvent(event));
  await expect.poll(() => well.caughtUp, { timeout: 10_000 }).toBe(true);
  const { values } = await lake.context.metrics.streamFailures.get();
  expect(values).toEqual([expect.objectContaining({ labels: { stream: "other" } })]);
  expect(values[0]!.value).toBeGreaterThan(1);
  ingest.stop();
  await ingest.done;
});

test("dead letters are counted from nothing on, so that the first ones show as growth", async () => {
  const lake = await Lake.create();
  const { values } = await lake.context.metrics.deadLetters.get();
  const names = ["", ...lake.context.models.map(({ name }) => name)];
  expect(names.length).toBeGreaterThan(1);
  expect(values).toEqual(names.map((model) => expect.objectContaining({ labels: { model }, value: 0 })));
  await lake.close();
});

test.each(CODES)("where it is the only stream, ingest ends with its %s", async (code) => {
  const lake = await Lake.create();
  const ingest = startIngest(lake.context);
  await ingest.land({ reader: new Unreadable("unreadable", code), name: "default", carries: () => true });
  await expect(ingest.done).rejects.toMatchObject({ code });
});
