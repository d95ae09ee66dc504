import type { DuckDBBlobValue, DuckDBTimestampTZValue } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { DeltaTable } from "../table/delta-table.js";
import { Mask } from "../table/mask.js";
import { Staging } from "../table/staging.js";
import type { TableFile } from "../table/types.js";
import { stageVectors } from "../table/vectors.js";
import type { IngestContext } from "./context.js";
import { EventBatch } from "./event-batch.js";
import { Target } from "./target.js";

export interface StoredLetter {
  readonly file: TableFile;
  readonly row: number;
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
      const mask = await table.mask(file);
      const path = await table.store.localPath(`${table.root}/${file.path}`);
      const result = await connection.runAndReadAll(
        `SELECT file_row_number, model, code, reason, tenant_id, entity_type, entity_id, stream, partition, position, received_at, event
         FROM read_parquet(${literal(path)}, file_row_number=true, hive_partitioning=false) ${where} ORDER BY 1`,
      );
      for (const [
        row,
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
        if (mask?.has(Number(row)) === true) continue;
        letters.push({
          file,
          row: Number(row),
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
      if (target.outdated) {
        throw new TributaryError(
          "TRB-MODEL-INVALID",
          `${name}: the model has changed; ingest rebuilds its table first`,
        );
      }
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
      target.close();
    }
  }
  await takeAway(context, done);
  return { applied: done.length, failed };
}

async function takeAway(context: IngestContext, gone: readonly StoredLetter[]): Promise<void> {
  const { table } = context.deadLetters;
  for (let letters = gone; letters.length > 0; ) {
    const snapshot = await table.refresh();
    const live = new Set(snapshot.files.map(({ path }) => path));
    if (!letters.every(({ file }) => live.has(file.path))) {
      // A compaction has moved them.
      const keys = new Set(letters.map(keyOf));
      letters = (await storedLetters(context, {})).filter((letter) => keys.has(keyOf(letter)));
    }
    const masks = new Map<TableFile, Mask>();
    for (const { file, row } of letters) {
      const current = snapshot.files.find(({ path }) => path === file.path);
      if (current === undefined) continue;
      let mask = masks.get(current);
      if (mask === undefined) {
        mask = (await table.mask(current))?.copy() ?? Mask.none(current.rows);
        masks.set(current, mask);
      }
      mask.set(row);
    }
    const result = await Staging.run(table, async (staging) =>
      staging.commit({
        operation: "DELETE",
        actions: await stageVectors(staging, masks),
        expect: new Map(),
        basedOn: snapshot.version,
        serializable: true,
      }),
    );
    if (result.kind === "committed") return;
  }
}

const keyOf = ({ model, stream, partition, position }: StoredLetter): string =>
  [model, stream, partition, position].join("\n");
