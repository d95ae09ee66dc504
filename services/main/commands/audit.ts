import type { Command } from "commander";
import { type AuditEntry, auditTrail } from "../../operate/audit-log.js";
import { withStore } from "../compose/runtime.js";
import { textTable } from "../terminal/text-table.js";
import { configOf, type DataOptions, timeOf, withData } from "./options.js";

interface Options extends DataOptions {
  readonly since?: string;
}

export function addAuditCommand(program: Command): void {
  withData(program.command("audit"))
    .description("what operators have asked for: who, when, what; the oldest first")
    .option("--since <time>", "from then on: 2026-01-31 or 2026-01-31T12:00:00Z", timeOf)
    .action(async (options: Options) => {
      const entries = await withStore(configOf(options), async (store) => {
        const found: AuditEntry[] = [];
        for await (const entry of auditTrail(store, options.since)) found.push(entry);
        return found;
      });
      if (options.json) console.log(JSON.stringify({ audit: entries }));
      else if (entries.length === 0) console.log("nothing was asked for");
      else console.log(auditTable(entries));
    });
}

const auditTable = (entries: readonly AuditEntry[]): string =>
  textTable(
    ["at", "by", "action", "job", "tenant", "of"],
    entries.map(({ at, by, action, job, tenant, entityType, entityId, source }) => {
      const of = [source, entityType, entityId].filter((one) => one !== undefined).join(" ");
      return [at, by, action, job, tenant, of];
    }),
  );
