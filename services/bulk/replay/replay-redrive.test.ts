import { expect, test } from "vitest";
import { beforeCommit } from "../../../test/support/before-commit.js";
import { hostOf, replayOf } from "../../../test/support/jobs.js";
import { Lake, liveRows, THING } from "../../../test/support/lake.js";
import { encodeEvent } from "../../contracts/encode-event.js";
import type { IngestContext } from "../../ingest/context.js";
import { EventBatch } from "../../ingest/event-batch.js";
import { redrive, storedLetters } from "../../ingest/redrive.js";
import { Offloaded } from "../../offload/offloaded.js";
import { DeltaTable } from "../../table/delta-table.js";
import { verifyTable } from "../../table/verify.js";
import type { ReplayJob } from "../jobs/job.js";
import { runReplay } from "./replay-job.js";

const orderOf = (words: Partial<ReplayJob>) => replayOf({ incomplete: true, ...words });

const TENANTS = ["acme", "b.x-9"] as const;

/** A lake of two tenants, in which an event of each is a dead letter: its payload is away until `back`. */
async function lakeWithLetters() {
  const lake = await Lake.create();
  const { store } = lake.context;
  const batch = new EventBatch(THING, "test");
  const away: { readonly uri: string; readonly payload: Buffer }[] = [];
  let position = 0;
  for (const tenantId of TENANTS)
    for (const entityId of ["there", "away"]) {
      const payload = Buffer.concat([Buffer.from([10, entityId.length]), Buffer.from(entityId)]);
      const reference = await new Offloaded(store, 1e9).put(
        tenantId,
        `type.googleapis.com/${THING}`,
        payload,
      );
      const event = { tenantId, entityType: THING, entityId, operation: 1, version: 1 };
      const bytes = encodeEvent({ ...event, reference });
      batch.add(bytes, 0, bytes.length, "0", String(++position).padStart(12, "0"), 1_700_000_000_000);
      if (entityId === "away") away.push({ uri: reference.uri, payload });
    }
  await store.delete(away.map(({ uri }) => uri));
  await lake.land(batch);
  await lake.settled();
  expect(await lake.deadLetters()).toHaveLength(2);
  const back = async () => {
    for (const { uri, payload } of away) await store.put(uri, payload);
  };
  return { lake, back };
}

async function served({ context }: Lake) {
  const table = (await DeltaTable.open(
    context.store,
    "refined/t/things",
    context.duck,
    context.tableOptions,
  ))!;
  expect((await verifyTable(table)).problems).toEqual([]);
  return context.duck.with((connection) => liveRows(connection, table, ["tenant_id", "entity_id", "name"]));
}

const right = TENANTS.flatMap((tenant) => ["away", "there"].map((id) => JSON.stringify([tenant, id, id])));

async function redriveAll(context: IngestContext) {
  await context.deadLetters.open();
  return redrive(context, await storedLetters(context, {}));
}

const MOMENTS = [
  ["swap", "after they were set aside"],
  ["swap", "at the commit"],
  ["repair", "after they were set aside"],
  ["repair", "at the commit"],
  ["compare", "after they were set aside"],
] as const;

test.each(MOMENTS)(
  "dead letters that are redriven amid a %s, %s, have their rows afterwards",
  async (action, moment) => {
    const { lake, back } = await lakeWithLetters();
    const other = await lake.twin();
    let redriven = 0;
    const meanwhile = async () => {
      if (redriven > 0) return;
      await back();
      redriven = (await redriveAll(other.context)).applied;
    };
    const atCommit = moment === "at the commit";
    const third = await lake.twin(
      atCommit ? { store: (inner) => beforeCommit(inner, "REPLACE ", meanwhile) } : {},
    );
    try {
      const host = hostOf({ pace: atCommit ? async () => undefined : meanwhile });
      const tenant = action === "repair" ? { tenant: "acme" } : {};
      expect(await runReplay(third.context, orderOf({ action, ...tenant }), host)).toBe(true);
      expect(redriven).toBe(2);
      expect(await served(lake)).toEqual(right);
      expect(await lake.deadLetters()).toEqual([]);
    } finally {
      third.context.duck.close();
      other.context.duck.close();
      await lake.close();
    }
  },
);

test("a replay that was refused for lost payloads goes through once they are back and it is resumed", async () => {
  const { lake, back } = await lakeWithLetters();
  try {
    const order = orderOf({ action: "swap", incomplete: false });
    const host = hostOf();
    await expect(runReplay(lake.context, order, host)).rejects.toMatchObject({ code: "TRB-REPLAY-PAYLOADS" });
    await back();
    expect(await runReplay(lake.context, order, host)).toBe(true);
    expect(await served(lake)).toEqual(right);
  } finally {
    await lake.close();
  }
});
