import { join } from "node:path";
import { Counter, Gauge, type Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { assert } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import { FileStore } from "../../storage/file-store.js";
import type { ObjectStore } from "../../storage/object-store.js";

/**
 * The lake's store, as configured. `user` names the process's parts of the folders for staged files and copies;
 * nobody else may have that name meanwhile. `metrics` is told of requests to a remote store.
 */
export async function openStore(config: Config, user: string, metrics?: Registry): Promise<ObjectStore> {
  const { lake, staging: above, cache } = layout(config.data);
  const staging = join(above, user);
  const { kind, s3 } = config.storage;
  if (kind === "files") return FileStore.open({ folder: lake, staging });
  const { bucket, cacheBytes, ...place } = s3;
  assert(bucket !== undefined, "a store on S3 has a bucket");
  // The SDK takes a while to load; who does not use it is spared that.
  const { S3Store } = await import("../../storage/s3-store.js");
  const requests = metrics === undefined ? undefined : requestCounter(metrics);
  const store = await S3Store.open({
    ...place,
    bucket,
    staging,
    cache: { folder: cache, user, bytes: cacheBytes },
    onRequest: (operation, outcome) => requests?.inc({ operation, outcome }),
  });
  if (metrics !== undefined) cacheGauge(metrics, () => store.cache.bytes);
  return store;
}

const requestCounter = (registry: Registry) =>
  new Counter({
    name: "tributary_store_requests_total",
    help: "Requests to the object store; each repeated try counts as retried",
    labelNames: ["operation", "outcome"],
    registers: [registry],
  });

const cacheGauge = (registry: Registry, bytes: () => number) =>
  new Gauge({
    name: "tributary_store_cache_bytes",
    help: "Bytes of the object store's files that are held on local disk",
    registers: [registry],
    collect() {
      this.set(bytes());
    },
  });
