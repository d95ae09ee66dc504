import type { IngestContext } from "../../ingest/context.js";
import type { Reject } from "../../sources/formats.js";
import type { SourceProcess } from "../../sources/source-process.js";
import type { BootstrapOrder } from "./bootstrap-order.js";
import type { Chunk, LeaveOut, NextChunk, Opened, OpenFile } from "./chunk-protocol.js";
import type { Aside } from "./payloads-aside.js";

/** What those who have a process of chunks (chunk-processes.ts) tell it, a file at a time. */

/** How records become events, as the job says. */
export type EventOrder = Pick<BootstrapOrder, "entityType" | "share"> &
  Partial<Pick<BootstrapOrder, "tenant" | "mapping">>;

/** The file, and what is to become of it. */
export interface FileToOpen
  extends Pick<OpenFile, "unit" | "file" | "from" | "out" | "models" | "asDigests" | "stream" | "partition"> {
  /** Where payloads wait that are too large for a row. */
  readonly aside: string;
}

/** Begins a file. Errors: TRB-BULK-MAPPING, those of sources and SourceProcess. */
export async function openFile(
  process: SourceProcess,
  { config, registry }: Pick<IngestContext, "config" | "registry">,
  { entityType, tenant, mapping, share }: EventOrder,
  { aside, ...file }: FileToOpen,
): Promise<Opened> {
  const open: OpenFile = {
    type: "open",
    ...file,
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
 * The next chunk of the file that is open. `seeTo` resolves to records whose payloads are not there, which are left out
 * then. Errors: those of sources, SourceProcess and `seeTo`.
 */
export async function makeChunk(
  process: SourceProcess,
  size: Pick<NextChunk, "rows" | "bytes">,
  onRejects: (rejects: readonly Reject[]) => void,
  seeTo: (aside: Aside) => Promise<readonly number[]>,
): Promise<Chunk> {
  const make = (request: NextChunk | LeaveOut) =>
    process.call(request, (reply) => {
      if (reply.type === "rejects") onRejects(reply.rejects);
    }) as Promise<Chunk>;
  const chunk = await make({ type: "next", ...size });
  const rows = chunk.aside === undefined ? [] : await seeTo(chunk.aside);
  return rows.length === 0 ? chunk : make({ type: "leave", rows });
}
