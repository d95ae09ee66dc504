import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { ObjectStore } from "../storage/object-store.js";

/**
 * What operators have done, and who has looked at what of a tenant past the walls that keep analysts to their own: one
 * object a deed, put before it is done and never changed. They lie by tenant, so that all that is known of one is found,
 * or erased, by its prefix; those of no one tenant lie beside.
 */
const FOLDER = "audit/";
/** No tenant has such a name. */
const OF_NONE = "~";

const shape = z.strictObject({
  /** ISO 8601. */
  at: z.iso.datetime(),
  /** The token's subject, or the machine's user as `local:<name>`. */
  by: z.string(),
  /** What was asked for: `raw show`, `bootstrap start`. Whether it was done then is told elsewhere. */
  action: z.string(),
  tenant: z.string().optional(),
  entityType: z.string().optional(),
  entityId: z.string().optional(),
  /** Of a bulk job. */
  job: z.string().optional(),
  /** What a job reads. */
  source: z.string().optional(),
});
export type AuditEntry = z.infer<typeof shape>;

/** Durable when resolved: what it tells of must not begin before. Errors: TRB-STORE-FAILED. */
export async function audit(store: ObjectStore, entry: AuditEntry): Promise<void> {
  const key = `${FOLDER}${entry.tenant ?? OF_NONE}/${timeIn(entry.at)}-${randomUUID()}.json`;
  await store.put(key, Buffer.from(JSON.stringify(shape.parse(entry))));
}

/** The tenant's entries, the oldest first; what is none is left out. Errors: TRB-STORE-FAILED. */
export async function* auditOf(store: ObjectStore, tenant: string): AsyncGenerator<AuditEntry> {
  for await (const { key } of store.list(`${FOLDER}${tenant}/`)) {
    const entry = entryOf(await store.get(key));
    if (entry !== undefined) yield entry;
  }
}

/** Those of all tenants and of none, as `auditOf`, from `since` on (ISO 8601). Errors: TRB-STORE-FAILED. */
export async function* auditTrail(store: ObjectStore, since = ""): AsyncGenerator<AuditEntry> {
  const from = timeIn(since);
  const found: { readonly key: string; readonly name: string }[] = [];
  for await (const { key } of store.list(FOLDER)) {
    const name = key.slice(key.lastIndexOf("/") + 1);
    if (name >= from) found.push({ key, name });
  }
  for (const { key } of found.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const entry = entryOf(await store.get(key));
    if (entry !== undefined) yield entry;
  }
}

/** Names in the order of time. */
const timeIn = (time: string): string => time.replace(/[^\dTZ]/g, "");

function entryOf(bytes: Buffer | undefined): AuditEntry | undefined {
  try {
    return shape.parse(JSON.parse(bytes?.toString("utf8") ?? ""));
  } catch {
    return undefined;
  }
}
