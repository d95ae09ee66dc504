import { within } from "../base/within.js";
import type { StreamConsumer } from "../stream/change-stream.js";

/**
 * The consumer once the stream lets it in. A stream that is away lets nobody in for long, and is not waited for beyond
 * `patienceMs` after the signal: then undefined, and a consumer that comes later leaves again.
 */
export async function joinedUnlessStopped(
  joining: Promise<StreamConsumer>,
  signal: AbortSignal,
  patienceMs: number,
): Promise<StreamConsumer | undefined> {
  const stopped = new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
  const gaveUp = stopped.then(async () => {
    await within(
      patienceMs,
      joining.catch(() => undefined),
    );
    return undefined;
  });
  const consumer = await Promise.race([joining, gaveUp]);
  if (consumer === undefined) {
    joining.then((late) => late.close()).catch(() => undefined);
  }
  return consumer;
}
