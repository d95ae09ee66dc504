import { loadConfig } from "../base/config.js";
import { ProtoRegistry } from "../contracts/registry.js";
import type { PayloadSource } from "../offload/payload-of.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import { openPayloads, openReader } from "./compose/runtime.js";

/**
 * The library for programs that read the stream beside the lake: `import { openStream, follow } from "tributary/reader"`.
 * It reads the same configuration as the servers (tributary.yaml, TRIBUTARY_* variables).
 */
export type { Change } from "../follow/change.js";
export { type Followed, type FollowedTo, type FollowOptions, follow } from "../follow/follow.js";
export type { PayloadFault } from "../offload/payload-of.js";

export interface OpenedStream {
  readonly reader: ChangeStreamReader;
  readonly registry: ProtoRegistry;
  /** Payloads that did not travel with their events; the lake's store is opened with the first of them. */
  readonly payloads: PayloadSource;
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
  return { reader: await openReader(config, domain), registry, payloads: openPayloads(config) };
}
