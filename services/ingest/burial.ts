import type { BoundModel } from "../models/bind.js";
import type { IngestContext } from "./context.js";
import type { EventBatch } from "./event-batch.js";
import type { Poison } from "./model-failure.js";

/** The events at positions of a stream as they were published, by "<partition>/<position>". */
export type Originals = (
  stream: string,
  wanted: readonly { readonly partition: string; readonly position: string }[],
) => Promise<ReadonlyMap<string, Buffer>>;

/**
 * Puts poison among the dead letters, durably. Events that were read back from raw lack what no model may see;
 * `originals` finds them whole.
 */
export async function bury(
  { deadLetters, metrics }: IngestContext,
  model: BoundModel,
  events: EventBatch,
  poison: readonly Poison[],
  originals?: Originals,
): Promise<void> {
  const at = (event: number) => ({
    partition: events.partitions[event]!,
    position: events.positions[event]!,
  });
  const found = await originals?.(
    events.stream,
    poison.map(({ event }) => at(event)),
  );
  await deadLetters.add(
    poison.map(({ event, code, reason }) => {
      const { partition, position } = at(event);
      return {
        model: model.name,
        code,
        reason,
        stream: events.stream,
        partition,
        position,
        receivedAt: events.receivedAt[event]!,
        event: found?.get(`${partition}/${position}`) ?? events.event(event),
      };
    }),
  );
  metrics.deadLetters.inc({ model: model.name }, poison.length);
}
