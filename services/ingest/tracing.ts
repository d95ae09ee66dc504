import { type Step, type StepAttributes, TRACED_AT_ONCE } from "../base/traces.js";
import { Envelope } from "../contracts/envelope.js";
import { mayHaveTraceparent, traceparentOf } from "../contracts/traceparent.js";
import type { IngestContext } from "./context.js";
import type { EventBatch } from "./event-batch.js";

/** Tells of the step that events of a batch have just taken, since the bus took them: of those that are traced. */
export function tellStep(
  { traces }: Pick<IngestContext, "traces">,
  step: Step,
  batch: EventBatch,
  about: StepAttributes,
): void {
  if (!traces.on) return;
  const now = Date.now();
  const envelope = new Envelope();
  let told = 0;
  for (let i = 0; i < batch.count && told < TRACED_AT_ONCE; i++) {
    if (!mayHaveTraceparent(batch.event(i))) continue;
    batch.readWhole(i, envelope);
    const traceparent = traceparentOf(envelope);
    if (traceparent === undefined) continue;
    const place = { partition: batch.partitions[i]!, position: batch.positions[i]! };
    traces.step(step, traceparent, batch.receivedAt[i]!, now, { ...about, ...place });
    told++;
  }
}
