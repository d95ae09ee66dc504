import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { ObjectStore } from "../storage/object-store.js";

/** What operators have done: an object of the lake each, put once, durable before what it tells of is done. */
const FOLDER = "audit/";

const auditEntry = z.object({
  /** ISO 8601. */
  at: z.iso.datetime(),
  /** The token's subject, or the local user as `local:<name>`. */
  by: z.string(),
  /** How it was asked for. */
  via: z.enum(["cli", "http"]),
  /** `bootstrap.start`, `raw.show`: what was asked for, done or refused behind it. */
  action: z.string(),
  /** What it was about: ids, tenants, entity types; no payloads. */
  about: z.record(z.string(), z.unknown()),
});
export type AuditEntry = z.infer<typeof auditEntry>;

/** Who does it, and how it was asked for. */
export type Actor = Pick<AuditEntry, "by" | "via">;

/** Resolves when the entry is durable; what it tells of is done only then. Errors: TRB-STORE-FAILED. */
export async function recordAudit(
  store: ObjectStore,
  actor: Actor,
  action: string,
  about: AuditEntry["about"],
): Promise<void> {
  const entry: AuditEntry = { at: new Date().toISOString(), ...actor, action, about };
  const key = `${FOLDER}${sortable(entry.at)}-${randomUUID()}.json`;
  await store.putIfAbsent(key, Buffer.from(JSON.stringify(entry)));
}

/** The oldest first, those from `since` on (ISO 8601). What cannot be read is left out. Errors: TRB-STORE-FAILED. */
export async function* auditTrail(store: ObjectStore, since = ""): AsyncGenerator<AuditEntry> {
  for await (const { key } of store.list(FOLDER, `${FOLDER}${sortable(since)}`)) {
    const entry = entryOf(await store.get(key));
    if (entry !== undefined) yield entry;
  }
}

/** Times as keys have them order as times do. */
const sortable = (time: string): string => time.replaceAll(":", "");

function entryOf(bytes: Buffer | undefined): AuditEntry | undefined {
  try {
    return auditEntry.parse(JSON.parse(String(bytes)));
  } catch {
    return undefined;
  }
}
