import { join } from "node:path";
import { packageRoot } from "../../base/paths.js";
import type { WrittenFile } from "../../table/data-file.js";

/** The order that raw files are compacted into, so that a chunk needs no compaction. */
export const ORDER = ["tenant_id", "entity_id"];
/** What a chunk without rows is written as. */
export const NO_FILE: WrittenFile = { rows: 0, bytes: 0, statistics: {} };

/** The compiled worker: a child process needs JavaScript, also when the parent runs from source. */
export const CHUNK_WORKER = join(packageRoot, "dist", "services", "bulk", "chunks", "chunk-worker.js");
