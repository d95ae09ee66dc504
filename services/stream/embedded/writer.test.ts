import { describe, expect, test } from "vitest";
import { eventSlices, eventsOf, positionsIn } from "../../../test/support/event-slices.js";
import { SimulatedFiles } from "../../../test/support/simulated-files.js";
import { closeLog } from "./closing.js";
import { EmbeddedLogReader } from "./reader.js";
import { EmbeddedLogWriter } from "./writer.js";

const FOLDER = "/simulated/stream";
const segment = (number: number) => `${FOLDER}/log/${String(number).padStart(12, "0")}.seg`;
const fenced = (number: number) => segment(number).replace(".seg", ".fenced.seg");
const open = (files: SimulatedFiles, segmentBytes = 100_000) =>
  EmbeddedLogWriter.open({ folder: FOLDER, partitions: 2, segmentBytes, files });
const event = (text: string, partition = 0) =>
  eventSlices([{ partition, bytes: Buffer.from(text) }], undefined, 2);
const ioError = (code: string) => Object.assign(new Error(code), { code });
/** The one power loss in which nothing survives that was not synced. */
const LOSE_ALL = () => 0.99;

/** Everything a new consumer can read. */
async function readTexts(files: SimulatedFiles, name = "test"): Promise<string[]> {
  const reader = await EmbeddedLogReader.open({ folder: FOLDER, files });
  try {
    const consumer = await reader.consume(name);
    const texts: string[] = [];
    for (;;) {
      const batch = await consumer.read({ maxEvents: 100, maxBytes: 1e6, waitMs: 0 });
      if (batch === undefined) return texts;
      texts.push(...eventsOf(batch).map(({ text }) => text));
    }
  } finally {
    await reader.close();
  }
}

describe("order of operations", () => {
  test("an append is acknowledged only after write, sync, and a look whether the log is still ours", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    const before = files.operations.length;
    let acknowledgedAt = -1;
    await writer.append(event("a")).then(() => {
      acknowledgedAt = files.operations.length;
    });
    expect(files.operations.slice(before, acknowledgedAt)).toEqual([
      `write ${segment(1)}`,
      `dataSync ${segment(1)}`,
      `stat ${segment(1)}`,
    ]);
    await writer.close();
  });

  test("a segment's header and its name are durable before its first frame is written", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files, 300);
    await writer.append(event("a"));
    const before = files.operations.length;
    await writer.append(event("b".repeat(300)));
    const steps = files.operations
      .slice(before)
      .map((operation) =>
        operation.replace(/\.0+2\.seg\.[0-9a-f]+\.tmp/, "TEMPORARY").replace(`${FOLDER}/log`, "LOG"),
      );
    const firstFrame = steps.indexOf("write LOG/000000000002.seg");
    // Retention looks at the consumers meanwhile; that has no part in the order.
    expect(
      steps.slice(0, firstFrame).filter((step) => step.includes(" LOG/") || step.endsWith(" LOG")),
    ).toEqual([
      "create LOG/TEMPORARY",
      "write LOG/TEMPORARY",
      "dataSync LOG/TEMPORARY",
      "stat LOG/000000000001.seg",
      "link LOG/000000000002.seg",
      "syncFolder LOG",
      "unlink LOG/TEMPORARY",
      "open LOG/000000000002.seg",
      "stat LOG/000000000002.seg",
    ]);
    await writer.close();
  });

  test("appends that arrive during a sync share the next one", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    const before = files.operations.length;
    const first = writer.append(event("0"));
    let letGo = () => {};
    const held = new Promise<void>((resolve) => {
      letGo = resolve;
    });
    let reached = () => {};
    const syncing = new Promise<void>((resolve) => {
      reached = resolve;
    });
    files.onOperation = async (operation) => {
      if (operation !== "dataSync") return;
      reached();
      await held;
    };
    await syncing;
    const others = Array.from({ length: 100 }, (_, i) => writer.append(event(`${i + 1}`, i % 2)));
    letGo();
    await Promise.all([first, ...others]);
    const steps = files.operations.slice(before).map((operation) => operation.split(" ")[0]);
    expect(steps).toEqual(["write", "dataSync", "stat", "write", "dataSync", "stat"]);
    await writer.close();
  });

  test("a reader delivers a frame that is not acknowledged yet only after syncing it itself", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    const reader = await EmbeddedLogReader.open({ folder: FOLDER, files });
    const consumer = await reader.consume("c");
    let isFirst = true;
    files.onOperation = (operation) => {
      if (operation !== "dataSync" || !isFirst) return;
      isFirst = false;
      return new Promise(() => undefined); // the writer's sync never ends
    };
    void writer.append(event("a"));
    const batch = await consumer.read({ maxEvents: 1, maxBytes: 1, waitMs: 10_000 });
    expect(eventsOf(batch!)[0]!.text).toBe("a");
    files.crashAt = 0;
    expect(await readTexts(files.afterPowerLoss(LOSE_ALL))).toEqual(["a"]);
    await reader.close();
  });
});

describe("a log that was closed for good", () => {
  const options = (files: SimulatedFiles) => ({ folder: FOLDER, partitions: 2, segmentBytes: 1_000, files });

  test("keeps what was acknowledged, and takes nothing more, whoever comes", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    await writer.append(event("kept"));
    await expect(closeLog(options(files))).rejects.toMatchObject({ code: "TRB-STREAM-LOCKED" });
    await writer.append(event("kept too"));
    await writer.close();
    await closeLog(options(files));
    await closeLog(options(files));
    await expect(open(files)).rejects.toMatchObject({ code: "TRB-STREAM-CLOSED" });
    expect(await readTexts(files)).toEqual(["kept", "kept too"]);
  });

  test("fences a writer that does not know of its lock", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    await writer.append(event("kept"));
    for (const { name } of await files.list(FOLDER)) {
      if (name.startsWith("writer@")) await files.unlink(`${FOLDER}/${name}`);
    }
    await closeLog(options(files));
    await expect(writer.append(event("late"))).rejects.toMatchObject({ code: "TRB-STREAM-FENCED" });
    await writer.close();
    expect(await readTexts(files)).toEqual(["kept"]);
  });
});

describe("faults of the disk", () => {
  test("a full disk rejects the appends of the group; later ones work when there is space", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    const kept = await writer.append(event("kept"));
    files.space = 100; // a part of the frame still fits
    await expect(writer.append(event("x".repeat(500)))).rejects.toMatchObject({
      code: "TRB-BUS-STREAM-DOWN",
    });
    files.space = 0;
    await expect(writer.append(event("y"))).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
    files.space = Number.POSITIVE_INFINITY;
    const [after] = positionsIn(await writer.append(event("after")));
    expect(Number(after)).toBe(Number(positionsIn(kept)[0]) + 1);
    await writer.close();
    expect(await readTexts(files)).toEqual(["kept", "after"]);
  });

  test("a full disk while a segment is begun harms nothing", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files, 300);
    await writer.append(event("a"));
    files.space = 20;
    await expect(writer.append(event("x".repeat(500)))).rejects.toMatchObject({
      code: "TRB-BUS-STREAM-DOWN",
    });
    files.space = Number.POSITIVE_INFINITY;
    await writer.append(event("b".repeat(500)));
    await writer.close();
    expect(await readTexts(files)).toEqual(["a", "b".repeat(500)]);
  });

  test("after a failed sync nothing is accepted until the log is opened again", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    await writer.append(event("a"));
    files.onOperation = (operation) => {
      if (operation === "dataSync") throw ioError("EIO");
    };
    await expect(writer.append(event("b"))).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
    files.onOperation = undefined;
    await expect(writer.append(event("c"))).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
    await writer.close();
    const next = await open(files);
    await next.append(event("d"));
    await next.close();
    expect((await readTexts(files)).filter((text) => text !== "b")).toEqual(["a", "d"]);
  });

  test("a segment whose name may not be durable is not used, nor the one before", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files, 300);
    await writer.append(event("a"));
    files.onOperation = (operation) => {
      if (operation === "syncFolder") throw ioError("EIO");
    };
    await expect(writer.append(event("x".repeat(500)))).rejects.toMatchObject({
      code: "TRB-BUS-STREAM-DOWN",
    });
    files.onOperation = undefined;
    await expect(writer.append(event("y"))).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
    await writer.close();
    const next = await open(files, 300);
    await next.append(event("b"));
    await next.close();
    expect(await readTexts(files)).toEqual(["a", "b"]);
  });

  test("a frame found after a kill is made durable before anything is built on it", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    files.onOperation = (operation) => {
      if (operation === "dataSync") files.crashAt = 0;
    };
    await expect(writer.append(event("unsynced"))).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
    const restarted = files.afterKill();
    const next = await open(restarted);
    await next.append(event("acknowledged"));
    restarted.crashAt = 0;
    expect(await readTexts(restarted.afterPowerLoss(LOSE_ALL))).toEqual(["unsynced", "acknowledged"]);
    await writer.close();
    await next.close();
  });
});

describe("damage", () => {
  async function threeFrames(): Promise<{ files: SimulatedFiles; ends: number[] }> {
    const files = new SimulatedFiles();
    const writer = await open(files);
    const ends: number[] = [];
    for (const text of ["first", "second", "third"]) {
      await writer.append(event(text));
      ends.push((await files.stat(segment(1)))!.bytes);
    }
    await writer.close();
    return { files, ends };
  }

  test("a tail torn at any byte is cut, and positions go on without a gap", async () => {
    const { ends } = await threeFrames();
    for (let length = ends[1]!; length < ends[2]!; length++) {
      const { files } = await threeFrames();
      const file = await files.open(segment(1), "write");
      await file.truncate(length);
      const writer = await open(files);
      expect(positionsIn(await writer.append(event("next")))).toEqual(["0000000000000003"]);
      await writer.close();
      expect(await readTexts(files)).toEqual(["first", "second", "next"]);
    }
  });

  test("a damaged byte in a frame that has a successor is told, and nothing is cut", async () => {
    const { ends } = await threeFrames();
    for (let at = 48 + 16; at < ends[1]!; at++) {
      const { files } = await threeFrames();
      files.damage(segment(1), (bytes) => {
        bytes[at]! ^= 0x40;
      });
      await expect(open(files)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
      expect((await files.stat(fenced(1)))!.bytes).toBe(ends[2]);
      await expect(readTexts(files)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
    }
  });

  test("a damaged byte in a segment's header is told", async () => {
    for (let at = 0; at < 48 + 16; at++) {
      const { files } = await threeFrames();
      files.damage(segment(1), (bytes) => {
        bytes[at]! ^= 0x01;
      });
      await expect(open(files)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
    }
  });

  test("a log that ends before what a consumer is done with has lost acknowledged events", async () => {
    const { files, ends } = await threeFrames();
    const reader = await EmbeddedLogReader.open({ folder: FOLDER, files });
    const consumer = await reader.consume("c");
    while ((await consumer.read({ maxEvents: 10, maxBytes: 1e6, waitMs: 0 })) !== undefined);
    await consumer.commit(await reader.head());
    await reader.close();
    await (await files.open(segment(1), "write")).truncate(ends[1]!);
    await expect(open(files)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
    expect((await files.stat(fenced(1)))!.bytes).toBe(ends[1]);
  });

  test("a segment that is missing or too short in the middle is told", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files, 200);
    for (let i = 0; i < 4; i++) await writer.append(event("x".repeat(150)));
    await writer.close();
    const copy = files.afterKill();
    await (await copy.open(segment(2), "write")).truncate(100);
    await expect(open(copy)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
    await copy.unlink(segment(2));
    await expect(open(copy)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
  });

  test("a payload that holds the bytes of a whole log is no frame", async () => {
    const { files } = await threeFrames();
    const log = Buffer.alloc((await files.stat(segment(1)))!.bytes);
    await (await files.open(segment(1), "read")).read(log, 0);
    const writer = await open(files);
    for (let shift = 0; shift < 8; shift++) {
      await writer.append(eventSlices([{ partition: 0, bytes: Buffer.concat([Buffer.alloc(shift), log]) }]));
    }
    await writer.close();
    const end = (await files.stat(segment(2)))!.bytes;
    await (await files.open(segment(2), "write")).truncate(end - 1);
    const next = await open(files);
    expect(positionsIn(await next.append(event("next")))).toEqual(["0000000000000011"]);
    await next.close();
  });
});

describe("one stream, one shape", () => {
  test("a second writer is refused while the first lives", async () => {
    const files = new SimulatedFiles();
    const writer = await open(files);
    await expect(open(files)).rejects.toMatchObject({ code: "TRB-STREAM-LOCKED" });
    await writer.close();
    await (await open(files)).close();
  });

  test("another number of partitions is refused", async () => {
    const files = new SimulatedFiles();
    await (await open(files)).close();
    const other = EmbeddedLogWriter.open({ folder: FOLDER, partitions: 3, segmentBytes: 1_000, files });
    await expect(other).rejects.toMatchObject({ code: "TRB-CONFIG" });
    await (await open(files)).close();
  });

  test("a log that starts anew gets another name", async () => {
    const one = await open(new SimulatedFiles());
    const two = await open(new SimulatedFiles());
    expect(one.name).not.toBe(two.name);
    await one.close();
    await two.close();
  });
});
