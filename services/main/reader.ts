import { loadConfig } from "../base/config.js";
import { ProtoRegistry } from "../contracts/registry.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import { openReader } from "./compose/runtime.js";

/**
 * The library for programs that read the stream beside the lake: `import { openStream, follow } from "tributary/reader"`.
 * It reads the same configuration as the servers (tributary.yaml, TRIBUTARY_* variables).
 */
export type { Change } from "../follow/change.js";
export { type Followed, type FollowedTo, type FollowOptions, follow } from "../follow/follow.js";

export interface OpenedStream {
  readonly reader: ChangeStreamReader;
  readonly registry: ProtoRegistry;
}

/**
 * What `follow` reads; `settings` are laid over the configuration. `domain` names a product domain where each has a
 * stream of its own. Close the reader in the end. Errors: TRB-CONFIG.
 */
export async function openStream(
  settings: Record<string, unknown> = {},
  domain?: string,
): Promise<OpenedStream> {
  const config = loadConfig(settings);
  const registry = ProtoRegistry.load(config.protoDirs, config.protoDescriptors);
  return { reader: await openReader(config, domain), registry };
}
