import type { DeltaTable } from "./delta-table.js";

/**
 * Removes files of one table's folder that nothing names: left by processes that died between publishing and
 * committing, or removed from the table longer ago than its retention. Side tables are left alone while they have a log.
 */
export class Sweep {
  /** Vector files that nothing names, and since when that is known. */
  private readonly unnamed = new Map<string, number>();

  constructor(private readonly table: DeltaTable) {}

  /**
   * Files changed within `graceMs` stay: somebody may be about to commit them, or read them. Resolves to the number of
   * files removed. Errors: TRB-STORE-FAILED.
   */
  async run(graceMs: number, now = Date.now()): Promise<number> {
    const { store, root } = this.table;
    const old: string[] = [];
    const sideTables = new Set<string>();
    for await (const { key, modifiedAt } of store.list(`${root}/`)) {
      const path = key.slice(root.length + 1);
      // By Delta's custom no file of the table; a repair keeps copies of what it has set aside there.
      if (path.startsWith("_")) continue;
      const log = path.indexOf("_delta_log/");
      if (log > 0) sideTables.add(path.slice(0, log));
      if (modifiedAt < now - graceMs) old.push(path);
    }
    // Only now: a file that was there has been named by now, or it is in nobody's hands who is alive.
    const named = await this.table.named();
    const orphans = old.filter(
      (path) => !named.has(path) && ![...sideTables].some((folder) => path.startsWith(folder)),
    );
    const doomed = this.unneeded(orphans, now);
    await store.delete(doomed.map((path) => `${root}/${path}`));
    return doomed.length;
  }

  /** The log tells for how long data files are gone, not vectors that were replaced: of those we keep count ourselves. */
  private unneeded(orphans: readonly string[], now: number): string[] {
    const vectors = new Set(orphans.filter((path) => path.endsWith(".bin")));
    for (const path of this.unnamed.keys()) if (!vectors.has(path)) this.unnamed.delete(path);
    for (const path of vectors) if (!this.unnamed.has(path)) this.unnamed.set(path, now);
    return orphans.filter(
      (path) => !vectors.has(path) || now - this.unnamed.get(path)! >= this.table.retentionMs,
    );
  }
}
