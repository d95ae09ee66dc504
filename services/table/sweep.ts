import type { DeltaTable } from "./delta-table.js";

/**
 * Removes files of one table's folder that nothing names: left by processes that died between publishing and
 * committing, or removed from the table longer ago than its retention. Side tables are left alone while they have a log.
 *
 * Another process may have been suspended with a commit on its way that names such files. So a commit of our own comes
 * before anything is removed: what was on its way for that version, or an earlier one, has lost, and whoever tries
 * again finds out that its files are too old (`CommitRequest.staged`). Any number of sweeps may run at once.
 */
export class Sweep {
  /** Vector files that nothing names, and since when that is known. */
  private readonly unnamed = new Map<string, number>();

  constructor(private readonly table: DeltaTable) {}

  /**
   * Files changed within `graceMs` stay: somebody may be about to commit them, or read them. Resolves to the number of
   * files removed. Errors: TRB-STORE-FAILED.
   */
  async run(graceMs = this.table.orphanAgeMs, now = Date.now()): Promise<number> {
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
    const unneeded = this.unneeded(orphans, now);
    if (unneeded.length === 0) return 0;
    await this.fence();
    const kept = await this.table.named();
    const doomed = unneeded.filter((path) => !kept.has(path));
    await store.delete(doomed.map((path) => `${root}/${path}`));
    return doomed.length;
  }

  private async fence(): Promise<void> {
    for (;;) {
      const { version } = await this.table.refresh();
      const request = {
        operation: "VACUUM START",
        actions: [],
        expect: new Map(),
        basedOn: version,
      } as const;
      const { kind } = await this.table.commit({ ...request, serializable: false });
      if (kind === "committed") return;
    }
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
