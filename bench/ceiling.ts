import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Duck, literal } from "../services/base/duckdb.js";
import { Feed } from "../services/columns/feed.js";
import { Envelope } from "../services/contracts/envelope.js";
import { PayloadDecoder } from "../services/contracts/payload-columns.js";
import { ProtoRegistry } from "../services/contracts/registry.js";
import { EventBatch } from "../services/ingest/event-batch.js";
import { RawRows } from "../services/ingest/raw-table.js";
import { TrackerWorkload, type WorkloadOptions } from "../services/main/workload/generator.js";

/**
 * What DuckDB alone could do on this machine with the same events: bytes to columns to two Parquet files, raw and
 * decoded, at once. No HTTP, no log, no winners, no index, no vectors, no commits.
 */
export async function ceiling(protoDirs: readonly string[], workload: WorkloadOptions, batchEvents: number) {
  const registry = ProtoRegistry.load(protoDirs);
  const batches = [...toBatches(registry, workload, batchEvents)];
  const folder = await mkdtemp(join(tmpdir(), "tributary-ceiling-"));
  const duck = await Duck.create({ memoryBytes: 4 * 1024 ** 3 });
  try {
    const raw = await duck.connect();
    const refined = await duck.connect();
    const rows = new RawRows();
    const rawFeed = Feed.register(raw, "ceiling_raw", rows.columns);
    const decoder = new PayloadDecoder(registry.entityType("tracker.v1.Issue")!);
    const refinedFeed = Feed.register(refined, "ceiling_refined", decoder.columns);
    const envelope = new Envelope();
    const cpu = process.cpuUsage();
    const started = performance.now();
    let events = 0;
    for (const [index, batch] of batches.entries()) {
      events += batch.count;
      rawFeed.use(rows.source(batch));
      refinedFeed.use({
        rows: batch.count,
        fill: (start, count) => {
          for (let row = 0; row < count; row++) {
            batch.read(start + row, envelope);
            if (envelope.payloadStart >= 0) {
              decoder.decode(envelope.bytes, envelope.payloadStart, envelope.payloadEnd, row);
            }
          }
        },
      });
      const copy = (feed: Feed, name: string) =>
        `COPY (SELECT * FROM ${feed.name}()) TO ${literal(join(folder, `${name}-${index}.parquet`))} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 2000)`;
      await Promise.all([raw.run(copy(rawFeed, "raw")), refined.run(copy(refinedFeed, "refined"))]);
    }
    const seconds = (performance.now() - started) / 1000;
    const used = process.cpuUsage(cpu);
    return { events, seconds, cpuMicros: (used.user + used.system) / events };
  } finally {
    duck.close();
    await rm(folder, { recursive: true, force: true });
  }
}

function* toBatches(registry: ProtoRegistry, workload: WorkloadOptions, size: number): Generator<EventBatch> {
  let batch = new EventBatch("tracker.v1.Issue", "bench");
  const envelope = new Envelope();
  for (const event of new TrackerWorkload(registry, workload).events()) {
    envelope.read(event, 0, event.length);
    if (envelope.entityType() !== batch.entityType) continue;
    batch.add(event, 0, event.length, "0", String(batch.count).padStart(16, "0"), Date.now());
    if (batch.count < size) continue;
    yield batch;
    batch = new EventBatch("tracker.v1.Issue", "bench");
  }
  if (batch.count > 0) yield batch;
}
