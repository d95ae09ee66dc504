import type { Code } from "../../base/codes.js";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { tellParent } from "../../base/tell-parent.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import type { BoundModel } from "../../models/bind.js";
import { tellOfProcess } from "./exposition.js";
import { type RunningIngest, runIngest } from "./ingest-process.js";
import { openLog } from "./runtime.js";

/**
 * The ingest process of an all-in-one server. It lives as long as its parent: a channel that breaks means the parent
 * is gone, and what was not committed is read again by the next one.
 */
export type ToChild = Start | { readonly metrics: number } | { readonly stop: true };
interface Start {
  readonly config: Config;
  /** A FileDescriptorSet, and the models bound against it. */
  readonly descriptors: Uint8Array;
  readonly models: readonly BoundModel[];
}
export type FromChild =
  | { readonly ready: true }
  | { readonly failed: { readonly code: Code; readonly message: string } }
  | { readonly metrics: number; readonly text: string };

let ingest: RunningIngest | undefined;
const tell = (message: FromChild) => tellParent(message);

/**
 * Ends at once, whatever runs. process.exit() waits for DuckDB's threads, which may wait for a column to be filled on
 * this very thread: it can hang for ever, with the lock held.
 */
const die = () => process.kill(process.pid, "SIGKILL");

process.on("disconnect", die);
// A terminal sends its interrupt to the whole group; the parent decides when we stop.
process.on("SIGINT", () => undefined);
process.on("SIGTERM", stop);
process.on("message", (message: ToChild) => {
  if ("config" in message) void start(message);
  else if ("stop" in message) stop();
  else void ingest?.metrics.metrics().then((text) => tell({ metrics: message.metrics, text }));
});

/** Before it has begun there is nothing to land. */
function stop(): void {
  if (ingest === undefined) die();
  else ingest.stop();
}

async function start({ config, descriptors, models }: Start): Promise<void> {
  const log = openLog(config);
  try {
    ingest = await runIngest(config, { registry: ProtoRegistry.of(descriptors), models });
    tellOfProcess(ingest.metrics, "ingest");
    void tell({ ready: true });
    await ingest.done;
    process.exit(0);
  } catch (error) {
    log.fatal({ err: error }, "ingest has ended");
    if (error instanceof TributaryError) await tell({ failed: { code: error.code, message: error.message } });
    die();
  }
}
