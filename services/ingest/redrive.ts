import type { DuckDBBlobValue, DuckDBTimestampTZValue } from "@duckdb/node-api";
import { literal, rowsOf } from "../base/duckdb.js";
import { type Action, removeOf } from "../table/actions.js";
import { stageFile } from "../table/data-file.js";
import type { DeltaTable } from "../table/delta-table.js";
import { withFilesScan } from "../table/scan.js";
import { Staging } from "../table/staging.js";
import type { IngestContext } from "./context.js";
import { EventBatch } from "./event-batch.js";
import { changed, Target } from "./target.js";

export interface StoredLetter {
  readonly model: string;
  readonly code: string;
  readonly reason: string;
  readonly tenantId: string | null;
  readonly entityType: string | null;
  readonly entityId: string | null;
  readonly stream: string;
  readonly partition: string;
  readonly position: string;
  readonly receivedAt: number;
  readonly event: Buffer;
}

export interface LetterFilter {
  readonly model?: string;
  readonly code?: string;
}

/** The letters that wait, oldest file first. */
export async function storedLetters(
  { deadLetters: { table } }: { readonly deadLetters: { readonly table: DeltaTable } },
  filter: LetterFilter,
): Promise<StoredLetter[]> {
  const snapshot = await table.refresh();
  const conditions = [
    ...(filter.model === undefined ? [] : [`model = ${literal(filter.model)}`]),
    ...(filter.code === undefined ? [] : [`code = ${literal(filter.code)}`]),
  ];
  const where = conditions.length === 0 ? "" : `WHERE ${conditions.join(" AND ")}`;
  const letters: StoredLetter[] = [];
  await table.duck.with(async (connection) => {
    for (const file of snapshot.files) {
      const result = await withFilesScan(table, snapshot, [file], {}, (live) =>
        connection.runAndReadAll(
          `SELECT model, code, reason, tenant_id, entity_type, entity_id, stream, partition, position, received_at, event
           FROM (${live}) ${where}`,
        ),
      );
      for (const [
        model,
        code,
        reason,
        tenant,
        type,
        id,
        stream,
        partition,
        position,
        received,
        event,
      ] of result.getRows()) {
        letters.push({
          model: model as string,
          code: code as string,
          reason: reason as string,
          tenantId: tenant as string | null,
          entityType: type as string | null,
          entityId: id as string | null,
          stream: stream as string,
          partition: partition as string,
          position: position as string,
          receivedAt: Number((received as DuckDBTimestampTZValue).micros) / 1000,
          event: Buffer.from((event as DuckDBBlobValue).bytes),
        });
      }
    }
  });
  return letters;
}

export interface Redriven {
  readonly applied: number;
  /** Letters that fail again; they stay, with the reason of this try. */
  readonly failed: readonly { readonly letter: StoredLetter; readonly reason: string }[];
}

/**
 * Applies stored letters to their models again and takes away those that went well. Raw has had their events all
 * along and gets no second row. Safe beside a running ingest and to repeat: an upsert may be applied twice.
 */
export async function redrive(context: IngestContext, letters: readonly StoredLetter[]): Promise<Redriven> {
  const failed: { letter: StoredLetter; reason: string }[] = [];
  const done: StoredLetter[] = [];
  for (const name of new Set(letters.map(({ model }) => model))) {
    const own = letters.filter(({ model }) => model === name);
    const model = context.models.find((candidate) => candidate.name === name);
    if (model === undefined) {
      const reason =
        name === "" ? "the event is not readable; it reached no table" : "there is no such model any more";
      failed.push(...own.map((letter) => ({ letter, reason })));
      continue;
    }
    const target = await Target.open(context, model);
    try {
      if (target.outdated) throw changed(name);
      for (const stream of new Set(own.map((letter) => letter.stream))) {
        const some = own.filter((letter) => letter.stream === stream);
        const batch = new EventBatch(model.entityType, stream);
        for (const { event, partition, position, receivedAt } of some) {
          batch.add(event, 0, event.length, partition, position, receivedAt);
        }
        const poison = new Map((await target.reapply(batch)).map(({ event, reason }) => [event, reason]));
        for (const [index, letter] of some.entries()) {
          const reason = poison.get(index);
          if (reason === undefined) done.push(letter);
          else failed.push({ letter, reason });
        }
      }
    } finally {
      await target.close();
    }
  }
  await takeAway(context, done);
  return { applied: done.length, failed };
}

/** Writes the files that hold these letters anew without them: letters are few, and vectors would lock readers out. */
async function takeAway(
  { deadLetters: { table } }: IngestContext,
  letters: readonly StoredLetter[],
): Promise<void> {
  if (letters.length === 0) return;
  const keys = letters.map(
    ({ model, stream, partition, position }) =>
      `(${[model, stream, partition, position].map(literal).join(", ")})`,
  );
  const taken = `(model, stream, partition, position) IN (${keys.join(", ")})`;
  for (;;) {
    const snapshot = await table.refresh();
    const result = await table.duck.with((connection) =>
      Staging.run(table, async (staging) => {
        const actions: Action[] = [];
        const now = Date.now();
        for (const file of snapshot.files) {
          await withFilesScan(table, snapshot, [file], {}, async (live) => {
            const [[hit, left]] = (await rowsOf(
              connection,
              `SELECT count(*) FILTER (WHERE ${taken}), count(*) FILTER (WHERE NOT ${taken}) FROM (${live})`,
            )) as [[bigint, bigint]];
            if (hit === 0n) return;
            actions.push({ remove: removeOf(file.add, now, true) });
            if (left === 0n) return;
            const others = `SELECT * FROM (${live}) WHERE NOT ${taken}`;
            const rest = await stageFile(staging, connection, others, {});
            await staging.publish([rest]);
            actions.push({ add: rest.add });
          });
        }
        return staging.commit({
          operation: "DELETE",
          actions,
          expect: new Map(),
          basedOn: snapshot.version,
          serializable: true,
        });
      }),
    );
    if (result.kind === "committed") return;
  }
}
