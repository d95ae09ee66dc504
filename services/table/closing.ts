import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { ProtocolAction } from "./actions.js";
import type { DeltaTable } from "./delta-table.js";
import type { TableSnapshot } from "./types.js";

/**
 * How a lake that moves is closed: a marker keeps tables from being made, and a last commit of each table refuses all
 * later ones, whoever wants to make them. Both stay readable.
 */

/** Domain of the closing commit, and the writer feature that keeps other engines from writing. */
const CLOSED = "tributary.closed";
const MARKER = "closed.json";

/** Keeps tables from being made in this lake; those that are made meanwhile are there when this resolves. */
export async function markClosed(store: ObjectStore): Promise<void> {
  await store.putIfAbsent(MARKER, Buffer.from(JSON.stringify({ closedAt: new Date().toISOString() })));
}

export const isMarkedClosed = async (store: ObjectStore): Promise<boolean> =>
  (await store.get(MARKER)) !== undefined;

/**
 * For who has made a table, before it writes rows, or has put aside events, before they are forgotten elsewhere: whoever
 * closes the lake after this look finds what was made.
 * Errors: TRB-LAKE-CLOSED.
 */
export async function requireOpen(store: ObjectStore): Promise<void> {
  if (await isMarkedClosed(store)) throw new TributaryError("TRB-LAKE-CLOSED");
}

export const isClosed = (domains: ReadonlyMap<string, string>): boolean => domains.has(CLOSED);

/** The last version that says more than that the table is closed. */
export const lastVersion = ({ version, domains }: Pick<TableSnapshot, "version" | "domains">): number =>
  isClosed(domains) ? version - 1 : version;

/** Makes the table's last commit, if it has none yet. Resolves to the version before it: the last that holds rows. */
export async function closeTable(table: DeltaTable): Promise<number> {
  for (;;) {
    const { version, domains } = await table.refresh();
    if (isClosed(domains)) return lastVersion({ version, domains });
    const configuration = JSON.stringify({ closedAt: new Date().toISOString() });
    const result = await table.commit({
      operation: "CLOSE",
      actions: [
        { protocol: withFeature(table.protocol) },
        { domainMetadata: { domain: CLOSED, configuration, removed: false } },
      ],
      expect: new Map([[CLOSED, undefined]]),
      basedOn: version,
      serializable: false,
    });
    if (result.kind === "committed") return result.version - 1;
  }
}

const withFeature = (protocol: ProtocolAction): ProtocolAction => ({
  ...protocol,
  minWriterVersion: 7,
  writerFeatures: [...new Set([...(protocol.writerFeatures ?? []), CLOSED])],
});
