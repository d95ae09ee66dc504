import { cp } from "node:fs/promises";
import { join } from "node:path";
import protobuf from "protobufjs";
import { encodeEvent } from "../../services/contracts/encode-event.js";
import { EventBatch } from "../../services/ingest/event-batch.js";
import { redrive, storedLetters } from "../../services/ingest/redrive.js";
import { compactAppended, compactUpserted } from "../../services/table/compact.js";
import { planCompaction } from "../../services/table/compaction-plan.js";
import type { Slots } from "../../services/table/slot-ranges.js";
import { Lake, Random, THING } from "./lake.js";
import { claimOf } from "./table-writers.js";

/** A lake for readers that are not ours: every kind of table, values at the edges, all that happens to a table in time. */

const Edge = protobuf
  .parse(
    `syntax = "proto3"; package e;
     message Time { int64 seconds = 1; int32 nanos = 2; }
     message Edge { string name = 1; int64 amount = 2; bool hidden = 3; string number = 4; repeated string labels = 5;
       Time at = 6; optional double ratio = 7; }`,
    new protobuf.Root(),
  )
  .root.lookupType("e.Edge");

const COLUMNS = `tenant_id, entity_id, operation, version, occurred_at, payload.name as name, payload.amount as amount,
  payload.labels as labels, payload.ratio as ratio, payload.at as at, payload.ratio > 0 as positive,
  {'name': payload.name, 'inner': {'amount': payload.amount}} as pair, map([payload.name], [payload.amount]) as amounts,
  cast(NUMBER as integer) as number, cast(cast(NUMBER as integer) as decimal(12, 3)) as exact,
  cast(payload.at as date) as day from {{ source('raw', 't.v1.Thing') }}`;
const FIRST = `select ${COLUMNS.replaceAll("NUMBER", "payload.number")} where not payload.hidden`;
/** Has learned to read one of the two kinds of events that the first cannot. */
const SECOND = `select ${COLUMNS.replaceAll("NUMBER", "replace(payload.number, 'no number', '-1')")}
  where not payload.hidden and payload.name <> 'dropped'`;

const BIG = 2n ** 53n;
const TENANTS = ["acme", "acme:eu", "b.x-9"];
const NAMES = ["", "ann", "zoë", "日本 🎉", "a\u0000b", 'li\ne\t"q" \\ %2F', "dropped", "e\u0301"];
const AMOUNTS = ["0", "-7", String(BIG + 1n), "9223372036854775807", "-9223372036854775808"];
const RATIOS = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0, 0.1, 1e300, 5e-324];
const VERSIONS = [1n, 2n, 1n << 32n, BIG, BIG + 1n, BIG + 2n, (1n << 63n) - 1n];
/** Years 1, 1500, 1899, 1969, 1970, 2024, 9999. */
const SECONDS = ["-62135596800", "-14826075154", "-2208988801", "-1", "0", "1709251199", "253402300799"];
const NANOS = [0, 999, 1_000, 123_456_789, 999_999_999];

const time = (random: Random) => ({ seconds: random.pick(SECONDS), nanos: random.pick(NANOS) });
const maybe = <T extends object>(random: Random, value: T): T | Record<string, never> =>
  random.chance(0.8) ? value : {};

function randomEvent(random: Random, version: bigint): Buffer {
  const operation = random.chance(0.12) ? 3 : 1 + random.below(2);
  const entity = `${random.pick(["", "é/", "a=b%20/", "🜁"])}${random.below(60)}`;
  const payload = {
    name: random.pick(NAMES),
    amount: random.pick(AMOUNTS),
    hidden: random.chance(0.1),
    // Casts of these fail: dead letters.
    number: random.chance(0.04) ? random.pick(["no number", "nonsense"]) : String(random.below(1000)),
    ...maybe(random, { labels: random.pick([["x"], ["", "a,b"], ["日", '"q"']]) }),
    ...maybe(random, { at: time(random) }),
    ...maybe(random, { ratio: random.pick(RATIOS) }),
  };
  return encodeEvent({
    tenantId: random.pick(TENANTS),
    entityType: THING,
    entityId: entity,
    operation,
    version: random.chance(0.3) ? random.pick(VERSIONS) : version,
    ...maybe(random, { occurredAt: time(random) }),
    ...(operation === 3 ? {} : { payload: { value: Edge.encode(Edge.fromObject(payload)).finish() } }),
    ...maybe(random, { attributes: random.pick([{ "": "empty key" }, { ключ: "", "trace-id": "ü" }]) }),
    ...maybe(random, { eventId: `ev/${version}` }),
  });
}

/** Makes a lake of `commits` batches or more in `folder`; its tables lie below it as in a data folder's `lake`. */
export async function makeForeignLake(folder: string, seed: number, commits: number): Promise<void> {
  const random = new Random(seed);
  const claims: { has: () => boolean; slots: Slots | undefined } = { has: () => true, slots: undefined };
  const lake = await Lake.create({ models: { things: FIRST }, checkpointEvery: 10, compactAfterFiles: 12 });
  try {
    for (let batch = 0; batch < commits; batch++) {
      // Raw has everything; from here on other rows belong to the model, whose table is built anew.
      if (batch === Math.floor(commits / 2)) await lake.reopen({ models: { things: SECOND } });
      // Workers come and go: files of some slots, and of all.
      claims.slots = batch % 3 === 0 ? undefined : claimOf(batch % 2, 2);
      lake.context = { ...lake.context, ours: claims };
      const events = new EventBatch(THING, "foreign");
      for (let i = 0; i < 1 + random.below(6); i++) {
        const number = batch * 10 + i + 1;
        const bytes = randomEvent(random, BigInt(number));
        const partition = String(number % 2);
        events.add(
          bytes,
          0,
          bytes.length,
          partition,
          String(number).padStart(12, "0"),
          1_700_000_000_000.123 + number,
        );
      }
      await (await lake.lane()).land(events);
      if (batch % 5 === 4) await compact(lake);
      if (batch === commits - 20) await redriveAll(lake);
    }
    await lake.settled();
    for (const { table } of [await lake.target()]) await table.settled();
    await cp(join(lake.folder, "lake"), folder, { recursive: true });
  } finally {
    await lake.close();
  }
}

async function compact(lake: Lake): Promise<void> {
  const lane = await lake.lane();
  const { duck } = lake.context;
  const raw = planCompaction(lane.raw.snapshot, 12);
  if (raw !== undefined)
    await duck.with((c) => compactAppended(lane.raw, c, raw, ["tenant_id", "partition", "position"]));
  const { writer } = await lake.target();
  const files = planCompaction(writer.table.snapshot, 12);
  if (files !== undefined) await duck.with((c) => compactUpserted(writer, c, files));
}

/** Takes away the letters of the kind that the model now reads. */
async function redriveAll(lake: Lake): Promise<void> {
  await lake.settled();
  const { applied, failed } = await redrive(lake.context, await storedLetters(lake.context, {}));
  if (applied === 0 || failed.length === 0) throw new Error("some letters were to go, and some to stay");
}
