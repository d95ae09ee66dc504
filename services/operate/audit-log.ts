import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { ObjectStore } from "../storage/object-store.js";

/**
 * Who has looked at what of a tenant, past the walls that keep analysts to their own: one object a deed, put before it
 * is done and never changed. They lie by tenant, so that all that is known of one is found, or erased, by its prefix.
 */
const FOLDER = "audit/";

const shape = z.strictObject({
  /** ISO 8601. */
  at: z.iso.datetime(),
  /** The token's subject, or the machine's user as `local:<name>`. */
  by: z.string(),
  action: z.enum(["raw show"]),
  tenant: z.string(),
  entityType: z.string(),
  entityId: z.string(),
});
export type AuditEntry = z.infer<typeof shape>;

/** Durable when resolved: what it tells of must not begin before. Errors: TRB-STORE-FAILED. */
export async function audit(store: ObjectStore, entry: AuditEntry): Promise<void> {
  // Names in the order of time.
  const time = entry.at.replace(/[^\dTZ]/g, "");
  await store.put(
    `${FOLDER}${entry.tenant}/${time}-${randomUUID()}.json`,
    Buffer.from(JSON.stringify(shape.parse(entry))),
  );
}

/** The tenant's entries, the oldest first; what is none is left out. Errors: TRB-STORE-FAILED. */
export async function* auditOf(store: ObjectStore, tenant: string): AsyncGenerator<AuditEntry> {
  for await (const { key } of store.list(`${FOLDER}${tenant}/`)) {
    const entry = entryOf(await store.get(key));
    if (entry !== undefined) yield entry;
  }
}

function entryOf(bytes: Buffer | undefined): AuditEntry | undefined {
  try {
    return shape.parse(JSON.parse(bytes?.toString("utf8") ?? ""));
  } catch {
    return undefined;
  }
}
