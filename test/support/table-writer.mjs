// A process that lands the batches of one partition in a table, beside others: started by test/slow/table-processes.test.ts.
// Arguments: URL of the built modules, folder, root, partition, seed, batches, age of orphans in ms.
const [dist, folder, root, partition, seed, batches, orphanAgeMs] = process.argv.slice(2);
const load = (path) => import(`${dist}services/${path}`);
const { Duck } = await load("base/duckdb.js");
const { FileStore } = await load("storage/file-store.js");
const { DeltaTable } = await load("table/delta-table.js");
const { EntityKeys } = await load("table/entity-keys.js");
const { UpsertWriter } = await load("table/upsert.js");
const { compareOrder, CONTENT_LO, FLAGS, ROW, VERSION_LO, WORDS } = await load("table/order.js");
const { compactUpserted } = await load("table/compact.js");
const { planCompaction } = await load("table/compaction-plan.js");
const { Sweep } = await load("table/sweep.js");
const { progressOf } = await load("table/progress.js");

const track = `s.${partition}`;
const store = await FileStore.open({ folder: `${folder}/lake`, staging: `${folder}/staging/${process.pid}` });
const duck = await Duck.create({ memoryBytes: 128 * 1024 * 1024 });
const options = { checkpointEvery: 20, orphanAgeMs: Number(orphanAgeMs) };
const table = await DeltaTable.open(store, root, duck, options);
const keys = new EntityKeys("t.v1.Thing");
const writer = UpsertWriter.for(table, 1 << 24, keys);
const connection = await duck.connect();

/** A number below `limit`, the same whenever it is asked for. */
function pick(n, which, limit) {
  let h =
    Math.imul(Number(seed) ^ Math.imul(Number(partition) + 1, 0x9e3779b1), 0x85ebca6b) ^
    Math.imul(n + 1, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 15) ^ Math.imul(which + 1, 0x27d4eb2f), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return ((h ^ (h >>> 16)) >>> 0) % limit;
}

function batch(n) {
  return Array.from({ length: 1 + pick(n, 99, 6) }, (_, i) => {
    const operation = 1 + pick(n, 4 * i + 1, 3);
    const content = operation === 3 ? 0 : pick(n, 4 * i + 3, 6);
    return {
      tenant: "acme",
      id: `e${pick(n, 4 * i, 25)}`,
      version: 1 + pick(n, 4 * i + 2, 60),
      operation,
      content,
    };
  });
}

function source(writes) {
  const best = new Map();
  for (const write of writes) {
    const record = new Uint32Array(WORDS);
    const [tenant, id] = [Buffer.from(write.tenant), Buffer.from(write.id)];
    keys.put(record, 0, tenant, 0, tenant.length, id, 0, id.length);
    record[VERSION_LO] = write.version;
    record[CONTENT_LO] = write.content;
    record[FLAGS] = write.operation;
    const known = best.get(write.id);
    if (known === undefined || compareOrder(record, 0, known.record, 0) > 0)
      best.set(write.id, { write, record });
  }
  const winners = [...best.values()];
  const records = new Uint32Array(winners.length * WORDS);
  for (const [ord, { record }] of winners.entries()) {
    records.set(record, ord * WORDS);
    records[ord * WORDS + ROW] = ord;
  }
  const values = winners.map(
    ({ write: { tenant, id, version, operation, content } }, ord) =>
      `(${ord}, '${tenant}', '${id}', ${version}::BIGINT, ${operation}::TINYINT, ${content}::BIGINT, NULL::TIMESTAMPTZ, 'v${version}-${content}')`,
  );
  const isRow = ({ write }) => write.operation !== 3 && write.content % 5 !== 0;
  return {
    connection,
    records,
    async keys() {
      await connection.run(`CREATE OR REPLACE TEMP TABLE batch AS SELECT * FROM (VALUES ${values.join(", ")}) t(ord, tenant_id,
        entity_id, _tributary_version, _tributary_operation, _tributary_hash, _tributary_occurred_at, value)`);
      return "batch";
    },
    async rows(survivors) {
      const ords = survivors.filter((ord) => isRow(winners[ord]));
      await connection.run(
        `CREATE OR REPLACE TEMP TABLE batch_rows AS SELECT * FROM batch WHERE ord IN (${[-1, ...ords].join(", ")}) ORDER BY ord`,
      );
      return { relation: "batch_rows", ords };
    },
    async release() {},
  };
}

const sweep = new Sweep(table);
let overtaken = 0;
const conflicts = {};
for (;;) {
  const from = progressOf(await table.refresh());
  const n = Number(from.get(track) ?? 0);
  if (n === Number(batches)) break;
  const writes = batch(n);
  console.log(JSON.stringify({ n, writes }));
  const started = performance.now();
  const result = await writer.upsert({
    source: source(writes),
    from,
    to: new Map([[track, String(n + 1).padStart(6, "0")]]),
    newest: undefined,
    ready: Promise.resolve(true),
  });
  if (result.kind === "committed") overtaken += result.overtaken;
  else conflicts[result.reason] = (conflicts[result.reason] ?? 0) + 1;
  console.log(JSON.stringify({ ms: performance.now() - started }));
  if (n % 5 === 4) {
    const files = planCompaction(table.snapshot, 4);
    if (files !== undefined) await compactUpserted(writer, connection, files);
  }
  if (n % 7 === 6) await sweep.run();
}
console.log(JSON.stringify({ overtaken, conflicts, loads: writer.locator.loads }));
await table.settled();
process.exit(0);
