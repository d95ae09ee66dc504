import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { objectStoreContract } from "../../test/contract/object-store.js";
import { SimulatedFiles } from "../../test/support/simulated-files.js";
import { FileStore } from "./file-store.js";

describe("file store", () => {
  objectStoreContract(async () => {
    const data = await mkdtemp(join(tmpdir(), "tributary-store-"));
    return {
      openStore: () => FileStore.open({ folder: join(data, "lake"), staging: join(data, "staging") }),
      dispose: () => rm(data, { recursive: true }),
    };
  });
});

const FOLDER = "/simulated/lake";
const STAGING = "/simulated/staging";
const open = (files: SimulatedFiles) => FileStore.open({ folder: FOLDER, staging: STAGING, files });
/** Operations from the index on, with temporary names made alike and looking around left out. */
const since = (files: SimulatedFiles, from: number) =>
  files.operations
    .slice(from)
    .map((step) => step.replace(/\/\.[^/]*\.[0-9a-f]{12}\.tmp$/, "/TEMPORARY").replaceAll("/simulated/", ""))
    .filter((step) => !/^(stat|size|open) /.test(step));
const failing = (files: SimulatedFiles, operation: string, code: string) => {
  files.onOperation = (name) => {
    if (name === operation) throw Object.assign(new Error(code), { code });
  };
};

describe("order of operations", () => {
  test("putIfAbsent: write, sync, link, sync of the folder", async () => {
    const files = new SimulatedFiles();
    const store = await open(files);
    await store.put("t/warm", Buffer.from("x"));
    const before = files.operations.length;
    let doneAt = -1;
    await store.putIfAbsent("t/0.json", Buffer.from("{}")).then(() => {
      doneAt = files.operations.length;
    });
    expect(doneAt).toBe(files.operations.length);
    expect(since(files, before)).toEqual([
      "create staging/TEMPORARY",
      "write staging/TEMPORARY",
      "dataSync staging/TEMPORARY",
      "link lake/t/0.json",
      "syncFolder lake/t",
      "unlink staging/TEMPORARY",
    ]);
  });

  test("a loser syncs the folder too: what it builds on must not vanish", async () => {
    const files = new SimulatedFiles();
    const store = await open(files);
    await store.put("warm", Buffer.from("x"));
    failing(files, "syncFolder", "EIO");
    await expect(store.putIfAbsent("0.json", Buffer.from("a"))).rejects.toMatchObject({
      code: "TRB-STORE-FAILED",
      retryable: true,
    });
    files.onOperation = undefined;
    expect(await (await open(files)).putIfAbsent("0.json", Buffer.from("b"))).toBe("exists");
    files.crashAt = 0;
    const after = await open(files.afterPowerLoss(() => 0.99));
    expect((await after.get("0.json"))?.toString()).toBe("a");
  });

  test("put: write, sync, rename, sync of the folder", async () => {
    const files = new SimulatedFiles();
    const store = await open(files);
    await store.put("pointer", Buffer.from("1"));
    const before = files.operations.length;
    await store.put("pointer", Buffer.from("2"));
    expect(since(files, before)).toEqual([
      "create staging/TEMPORARY",
      "write staging/TEMPORARY",
      "dataSync staging/TEMPORARY",
      "rename lake/pointer",
      "syncFolder lake",
    ]);
  });

  test("new folders are durable, each in the one above, before the object's name is", async () => {
    const files = new SimulatedFiles();
    const store = await open(files);
    const before = files.operations.length;
    await store.putIfAbsent("a/b/0.json", Buffer.from("{}"));
    const steps = since(files, before);
    const order = [
      "makeFolder lake/a",
      "syncFolder lake",
      "makeFolder lake/a/b",
      "syncFolder lake/a",
      "link lake/a/b/0.json",
    ];
    const at = order.map((step) => steps.lastIndexOf(step));
    expect(at).toEqual([...at].sort((x, y) => x - y));
    expect(at).not.toContain(-1);
  });

  test("adopt: all contents synced before any name, each folder synced once", async () => {
    const files = new SimulatedFiles();
    const store = await open(files);
    await store.put("t/warm", Buffer.from("x"));
    const adopted = [0, 1, 2].map((i) => ({ localPath: `${STAGING}/${i}`, key: `t/${i}.parquet` }));
    for (const { localPath } of adopted)
      await (await files.open(localPath, "create")).write(Buffer.from("x"), 0);
    const before = files.operations.length;
    await store.adopt(adopted);
    const steps = since(files, before).map((step) => step.split(" ")[0]);
    expect(steps.filter((step) => step !== "setReadOnly")).toEqual([
      "dataSync",
      "dataSync",
      "dataSync",
      "rename",
      "rename",
      "rename",
      "syncFolder",
    ]);
  });

  test.each(["put", "putIfAbsent", "adopt"] as const)(
    "%s: whatever operation the power fails at, a resolved call is durable and an object is never torn",
    async (call) => {
      const content = Buffer.from("content ".repeat(200));
      for (let crashAt = 0; ; crashAt++) {
        const files = new SimulatedFiles();
        const store = await open(files);
        const localPath = `${STAGING}/made`;
        await (await files.open(localPath, "create")).write(content, 0);
        files.crashAt = files.operations.length + crashAt;
        const step = {
          put: () => store.put("a/b", content),
          putIfAbsent: () => store.putIfAbsent("a/b", content),
        };
        const work = call === "adopt" ? store.adopt([{ localPath, key: "a/b" }]) : step[call]();
        const resolved = await work.then(
          () => true,
          () => false,
        );
        const survived = !files.crashed;
        files.crashAt = 0;
        for (const luck of [0, 0.3, 0.6, 0.99]) {
          const found = await (await open(files.afterPowerLoss(() => luck))).get("a/b");
          if (resolved) expect(found?.equals(content)).toBe(true);
          else if (found !== undefined) expect(found.equals(content)).toBe(true);
        }
        if (survived) break;
      }
    },
  );
});

describe("faults", () => {
  test("a full disk fails the put and leaves nothing behind", async () => {
    const files = new SimulatedFiles();
    const store = await open(files);
    files.space = 10;
    for (const put of [store.put("k", Buffer.alloc(100)), store.putIfAbsent("k", Buffer.alloc(100))]) {
      await expect(put).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    }
    files.space = 1_000;
    expect(await store.get("k")).toBeUndefined();
    expect(await files.list(STAGING)).toEqual([]);
    expect(await store.putIfAbsent("k", Buffer.from("x"))).toBe("created");
  });

  test.each(["dataSync", "link", "syncFolder"])(
    "a failed %s is told, never taken for success",
    async (operation) => {
      const files = new SimulatedFiles();
      const store = await open(files);
      await store.put("warm", Buffer.from("x"));
      failing(files, operation, "EIO");
      await expect(store.putIfAbsent("k", Buffer.from("x"))).rejects.toMatchObject({
        code: "TRB-STORE-FAILED",
      });
    },
  );

  test("messages hold neither path nor key", async () => {
    const store = await open(new SimulatedFiles());
    const errors = await Promise.allSettled([store.getRange("acme/secret", 0, 1), store.get("../acme")]);
    for (const outcome of errors) {
      expect(outcome.status).toBe("rejected");
      expect(String((outcome as PromiseRejectedResult).reason)).not.toMatch(/acme|simulated/);
    }
  });

  test("a folder that somebody removed is made again", async () => {
    const data = await mkdtemp(join(tmpdir(), "tributary-store-"));
    try {
      const store = await FileStore.open({ folder: join(data, "lake"), staging: join(data, "staging") });
      await store.put("t/x/1", Buffer.from("1"));
      await rm(join(data, "lake", "t"), { recursive: true });
      await store.put("t/x/2", Buffer.from("2")).catch(() => undefined);
      await store.put("t/x/2", Buffer.from("2"));
      expect((await store.get("t/x/2"))?.toString()).toBe("2");
    } finally {
      await rm(data, { recursive: true });
    }
  });

  test("adopted files are read-only and can be read where withLocal says", async () => {
    const data = await mkdtemp(join(tmpdir(), "tributary-store-"));
    try {
      const store = await FileStore.open({ folder: join(data, "lake"), staging: join(data, "staging") });
      const source = join(store.staging, "f");
      await writeFile(source, "rows");
      await store.adopt([{ localPath: source, key: "t/f" }]);
      await store.withLocal(["t/f"], async ([path]) => {
        expect(await readFile(path!, "utf8")).toBe("rows");
        expect((await stat(path!)).mode & 0o222).toBe(0);
      });
    } finally {
      await rm(data, { recursive: true });
    }
  });
});
