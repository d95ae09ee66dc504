import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { loadConfig } from "../../base/config.js";
import { layout } from "../../base/paths.js";
import { cachesIn } from "../../storage/object-cache.js";
import { openServerStore } from "./runtime.js";

test("servers that share a data folder have copies of remote objects in folders of their own", async () => {
  const data = mkdtempSync(join(tmpdir(), "tributary-places-"));
  // Nobody is asked: opening makes no request.
  const s3 = { bucket: "lake", region: "eu-central-1", endpoint: "http://127.0.0.1:9" };
  const config = loadConfig({ data, storage: { kind: "s3", s3 } }, { env: {} });
  try {
    const first = await openServerStore(config, "query");
    const download = join(cachesIn(layout(data).cache), "query", "half-of-it.tmp");
    writeFileSync(download, "x");
    const second = await openServerStore(config, "query");
    expect(second.store.staging).not.toBe(first.store.staging);
    // Else the second one takes what the first one is fetching for a dead process's.
    expect(existsSync(download)).toBe(true);
    await first.release();
    const third = await openServerStore(config, "query");
    expect(third.store.staging).toBe(first.store.staging);
    await second.release();
    await third.release();
  } finally {
    rmSync(data, { recursive: true });
  }
});
