/**
 * A search indexer beside the lake: follows the stream by itself, keeps a full-text index for each tenant, and needs
 * neither ingest nor tables. Nothing waits for it, and it loses nothing: how far it has come is saved with what it made
 * of it, in one file that is replaced as a whole.
 *
 *   node indexer.mjs follow --index index.json     until it is stopped; goes on where it ended
 *   node indexer.mjs search --index index.json --tenant acme "stream reader"
 *
 * The stream is the one that tributary.yaml and TRIBUTARY_* variables name.
 */
import { existsSync, readFileSync } from "node:fs";
import { open, rename } from "node:fs/promises";
import { parseArgs } from "node:util";
import MiniSearch from "minisearch";
import { follow, openStream } from "tributary/reader";

const SAVE_EVERY_MS = 1_000;
const FIELDS = { fields: ["text"], storeFields: ["type", "entity"] };

/** One tenant's documents. Tenants never share an index: a search cannot find what is not in it. */
class TenantIndex {
  constructor(saved = { orders: {}, search: undefined }) {
    /** Entity → order of the change that stands, deletes included: what comes late never brings back what is gone. */
    this.orders = new Map(Object.entries(saved.orders));
    this.search = saved.search ? MiniSearch.loadJS(saved.search, FIELDS) : new MiniSearch(FIELDS);
  }

  apply(change) {
    const id = JSON.stringify([change.entityType, change.entityId]);
    const standing = this.orders.get(id);
    if (standing !== undefined && standing >= change.order) return;
    this.orders.set(id, change.order);
    if (this.search.has(id)) this.search.discard(id);
    if (change.operation === "DELETED") return;
    const text = textsIn(change.payload).join("\n");
    this.search.add({ id, type: change.entityType, entity: change.entityId, text });
  }

  saved() {
    return { orders: Object.fromEntries(this.orders), search: this.search.toJSON() };
  }
}

const textsIn = (value) => {
  if (typeof value === "string") return [value];
  return value !== null && typeof value === "object" ? Object.values(value).flatMap(textsIn) : [];
};

/** What is saved: { to, tenants }. */
class IndexFile {
  constructor(path) {
    this.path = path;
    const saved = existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : { to: "oldest", tenants: {} };
    this.to = saved.to;
    this.tenants = new Map(Object.entries(saved.tenants).map(([id, index]) => [id, new TenantIndex(index)]));
  }

  apply(changes, to) {
    for (const change of changes) {
      // Its payload is missing: tables do not have it either, and tell of it in the dead letters.
      if (change.payloadFault !== undefined) continue;
      if (!this.tenants.has(change.tenantId)) this.tenants.set(change.tenantId, new TenantIndex());
      this.tenants.get(change.tenantId).apply(change);
    }
    this.to = to;
  }

  async save() {
    const tenants = Object.fromEntries([...this.tenants].map(([id, index]) => [id, index.saved()]));
    const file = await open(`${this.path}.new`, "w");
    await file.writeFile(JSON.stringify({ to: this.to, tenants }));
    // Its content before its name: after a power loss there is the old file or the new one.
    await file.sync();
    await file.close();
    await rename(`${this.path}.new`, this.path);
  }
}

async function followInto(path, untilHead) {
  const index = new IndexFile(path);
  const { reader, registry, payloads } = await openStream();
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop.abort());
  let saved = 0;
  let savedTo;
  for await (const { changes, to } of follow({
    reader,
    registry,
    payloads,
    from: index.to,
    untilHead,
    signal: stop.signal,
  })) {
    index.apply(changes, to);
    // `follow` comes by every second, with changes or without.
    if (to === savedTo || performance.now() - saved < SAVE_EVERY_MS) continue;
    savedTo = to;
    await index.save();
    saved = performance.now();
  }
  await index.save();
  await reader.close();
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    index: { type: "string", default: "index.json" },
    tenant: { type: "string" },
    "no-follow": { type: "boolean", default: false },
  },
});
const [command, query] = positionals;
if (command === "follow") await followInto(values.index, values["no-follow"]);
else if (command === "search" && values.tenant !== undefined && query !== undefined) {
  const found = new IndexFile(values.index).tenants.get(values.tenant)?.search.search(query) ?? [];
  for (const { type, entity, score } of found) console.log(JSON.stringify({ type, entity, score }));
} else {
  console.error(
    "usage: indexer.mjs follow [--index FILE] [--no-follow] | search --tenant ID [--index FILE] QUERY",
  );
  process.exitCode = 2;
}
