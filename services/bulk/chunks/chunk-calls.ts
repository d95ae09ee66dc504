import type { IngestContext } from "../../ingest/context.js";
import type { SourceProcess } from "../../sources/source-process.js";
import type { BootstrapOrder } from "./bootstrap-order.js";
import type { Chunk, FileReject, LeaveOut, NextChunk, Opened, OpenFiles } from "./chunk-protocol.js";
import type { Aside } from "./payloads-aside.js";

/** What those who have a process of chunks (chunk-processes.ts) tell it. */

/** How records become events, as the job says. */
export type EventOrder = Pick<BootstrapOrder, "entityType" | "share"> &
  Partial<Pick<BootstrapOrder, "tenant" | "mapping">>;

/** The files, and what is to become of them. */
export interface FilesToOpen
  extends Pick<OpenFiles, "files" | "from" | "out" | "models" | "asDigests" | "stream" | "partition"> {
  /** Where payloads wait that are too large for a row. */
  readonly aside: string;
}

/** Begins files. Errors: TRB-BULK-MAPPING, those of sources and SourceProcess. */
export async function openFiles(
  process: SourceProcess,
  { config, registry }: Pick<IngestContext, "config" | "registry">,
  { entityType, tenant, mapping, share }: EventOrder,
  { aside, ...asked }: FilesToOpen,
): Promise<Opened> {
  const open: OpenFiles = {
    type: "open",
    ...asked,
    entityType,
    tenant,
    mapping,
    leaves: share?.leaves,
    payloads: { sizes: config.bus, aside },
    descriptors: registry.bytes(),
  };
  return (await process.call(open)) as Opened;
}

/**
 * The next chunk of the files that are open. `seeTo` resolves to the positions of records whose payloads are not there,
 * which are left out then. Errors: those of sources, SourceProcess and `seeTo`.
 */
export async function makeChunk(
  process: SourceProcess,
  size: Pick<NextChunk, "rows" | "bytes">,
  onRejects: (rejects: readonly FileReject[]) => void,
  seeTo: (aside: Aside) => Promise<readonly string[]>,
): Promise<Chunk> {
  const make = (request: NextChunk | LeaveOut) =>
    process.call(request, (reply) => {
      if (reply.type === "rejects") onRejects(reply.rejects as readonly FileReject[]);
    }) as Promise<Chunk>;
  const chunk = await make({ type: "next", ...size });
  const positions = chunk.aside === undefined ? [] : await seeTo(chunk.aside);
  return positions.length === 0 ? chunk : make({ type: "leave", positions });
}
