import { spawn } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { SimulatedFiles } from "../../test/support/simulated-files.js";
import {
  createDurably,
  ensureFolder,
  type FileOps,
  nodeFiles,
  readWhole,
  replaceDurably,
  writeFully,
} from "./files.js";
import { acquireLock } from "./process-lock.js";

describe("durable files", () => {
  test("short writes are completed, as far as the disk goes", async () => {
    const files = new SimulatedFiles();
    const file = await files.open("/simulated/f", "create");
    files.space = 4;
    await expect(writeFully(file, Buffer.from("0123456789"), 0)).rejects.toMatchObject({ code: "ENOSPC" });
    expect((await readWhole(files, "/simulated/f"))?.toString()).toBe("0123");
  });

  test("a replaced file has the old or the new content after a power loss", async () => {
    for (let crashAt = 0; crashAt < 8; crashAt++) {
      for (const luck of [0, 0.3, 0.6, 0.99]) {
        const files = new SimulatedFiles();
        await createDurably(files, "/simulated/f", Buffer.from("old"));
        files.crashAt = files.operations.length + crashAt;
        const done = await replaceDurably(files, "/simulated/f", Buffer.from("new")).then(
          () => true,
          () => false,
        );
        files.crashAt = 0;
        const text = (
          await readWhole(
            files.afterPowerLoss(() => luck),
            "/simulated/f",
          )
        )?.toString();
        expect(done ? ["new"] : ["old", "new"]).toContain(text);
      }
    }
  });

  test("a temporary file whose making is told to have failed is not left behind", async () => {
    const folder = await mkdtemp(join(tmpdir(), "tributary-files-"));
    try {
      const files: FileOps = {
        ...nodeFiles,
        open: async (path, how) => {
          const file = await nodeFiles.open(path, how);
          await file.close();
          throw Object.assign(new Error("a fault of the test"), { code: "EIO" });
        },
      };
      await expect(createDurably(files, join(folder, "f"), Buffer.from("x"))).rejects.toMatchObject({
        code: "EIO",
      });
      expect(await readdir(folder)).toEqual([]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("a file that is not there has no content", async () => {
    expect(await readWhole(nodeFiles, join(tmpdir(), "tributary-no-such-file"))).toBeUndefined();
  });

  test("folders are made down to the last", async () => {
    const files = new SimulatedFiles();
    await ensureFolder(files, "/simulated/a/b/c");
    files.crashAt = 0;
    const after = files.afterPowerLoss(() => 0.99);
    expect((await after.stat("/simulated/a/b/c"))?.isFolder).toBe(true);
  });
});

describe("process lock", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "tributary-lock-"));
  });
  afterEach(() => rm(folder, { recursive: true }));

  test("one holder at a time; released, another may have it", async () => {
    const lock = await acquireLock(nodeFiles, folder, "writer");
    await expect(acquireLock(nodeFiles, folder, "writer")).rejects.toMatchObject({
      code: "TRB-STREAM-LOCKED",
    });
    const other = await acquireLock(nodeFiles, folder, "another-name");
    await lock.release();
    await (await acquireLock(nodeFiles, folder, "writer")).release();
    await other.release();
    expect(await readdir(folder)).toEqual([]);
  });

  test("of many that start together at most one holds it", async () => {
    for (let round = 0; round < 10; round++) {
      let holders = 0;
      await Promise.all(
        Array.from({ length: 8 }, async () => {
          const lock = await acquireLock(nodeFiles, folder, "writer").catch(() => undefined);
          if (lock === undefined) return;
          expect(++holders).toBe(1);
          await new Promise((resolve) => setTimeout(resolve, 20));
          holders--;
          await lock.release();
        }),
      );
    }
  });

  test("the lock of a process that was killed is no obstacle", async () => {
    const child = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"]);
    const live = await lockOf(child.pid!);
    await expect(acquireLock(nodeFiles, folder, "writer")).rejects.toMatchObject({
      code: "TRB-STREAM-LOCKED",
    });
    const ended = new Promise((resolve) => child.on("exit", resolve));
    child.kill("SIGKILL");
    await ended;
    await (await acquireLock(nodeFiles, folder, "writer")).release();
    expect(await readdir(folder)).not.toContain(live);
  });

  test.runIf(process.platform === "linux")(
    "a process that got the id of a dead one is no obstacle",
    async () => {
      const mine = await lockOf(process.pid);
      await writeFile(
        join(
          folder,
          mine.replace(/@(\d+)-(\d+)/, (_, pid, start) => `@${pid}-${Number(start) - 1}`),
        ),
        "",
      );
      await rm(join(folder, mine));
      await (await acquireLock(nodeFiles, folder, "writer")).release();
      expect(await readdir(folder)).toEqual([]);
    },
  );

  test.runIf(process.platform === "linux")(
    "one whose process id means nothing here is live as long as it beats, and no obstacle after",
    async () => {
      // As from a container: another process space, with an id that may be anybody's in ours.
      const mine = await lockOf(process.pid);
      await rm(join(folder, mine));
      const foreign = join(folder, mine.replace(/\.\d+-/, ".1-").replace(/@\d+/, "@1"));
      let beats = 0;
      await writeFile(foreign, "0");
      const timer = setInterval(() => void writeFile(foreign, String(++beats)), 100);
      await expect(acquireLock(nodeFiles, folder, "writer")).rejects.toMatchObject({
        code: "TRB-STREAM-LOCKED",
      });
      clearInterval(timer);
      expect(await readdir(folder)).toEqual([basename(foreign)]);
      await (await acquireLock(nodeFiles, folder, "writer")).release();
      expect(await readdir(folder)).toEqual([]);
    },
  );

  /** Leaves a lock file as the process `pid` would have. */
  async function lockOf(pid: number): Promise<string> {
    const lock = await acquireLock(nodeFiles, folder, "writer");
    const [mine] = await readdir(folder);
    await lock.release();
    const fields = process.platform === "linux" ? await statFields(pid) : [];
    const name = mine!.replace(/@\d+-\d+/, `@${pid}-${fields[19] ?? "0"}`);
    await writeFile(join(folder, name), "");
    return name;
  }

  async function statFields(pid: number): Promise<string[]> {
    const line = await readFile(`/proc/${pid}/stat`, "latin1");
    return line.slice(line.lastIndexOf(")") + 2).split(" ");
  }
});
