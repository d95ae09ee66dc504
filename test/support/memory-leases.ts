import { TributaryError } from "../../services/base/errors.js";
import type { Lease, LeaseChange, LeaseResult, LeaseStore } from "../../services/lease/lease-store.js";

/** Leases in memory, shared by the workers of a test. */
export class MemoryLeases implements LeaseStore {
  readonly leases = new Map<string, Lease>();
  /** While true nobody gets an answer. */
  down = false;
  changes = 0;

  async list(): Promise<readonly Lease[]> {
    if (this.down) throw new TributaryError("TRB-STORE-FAILED");
    return [...this.leases.values()];
  }

  async change(changes: readonly LeaseChange[]): Promise<readonly LeaseResult[]> {
    if (this.down) throw new TributaryError("TRB-STORE-FAILED");
    return changes.map(({ from, to }): LeaseResult => {
      const name = (from === undefined ? to : from).name;
      if (this.leases.get(name)?.counter !== from?.counter) return undefined;
      this.changes++;
      if (to === undefined) {
        this.leases.delete(name);
        return "removed";
      }
      const lease = { ...to, counter: (from?.counter ?? 0) + 1 };
      this.leases.set(name, lease);
      return lease;
    });
  }

  /** Names by owner. */
  owned(): Record<string, string[]> {
    const owned: Record<string, string[]> = {};
    for (const { name, owner = "nobody", finished } of this.leases.values()) {
      if (!finished) owned[owner] = [...(owned[owner] ?? []), name];
    }
    return owned;
  }
}
