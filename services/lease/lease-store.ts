/**
 * The lease port: small named records that workers share, so that each piece of work has one owner at a time as far as
 * leases can tell. Safety never rests on a lease: its owner may be frozen and wake up beside its successor.
 *
 * Atomicity. A change is a compare-and-set on the record it was made from (its counter); of several made from the same
 * record one wins, for ever. Conflicts are returned.
 * Ordering. What `list` shows is at least as new as every change that had resolved when it was called.
 * Durability. A resolved change survives the loss of process and power.
 * Time. A store keeps none. Who looks on judges by its own steady clock: a lease whose counter has not moved for as long
 * as leases last has been abandoned. Clocks of two machines are never compared.
 */
export interface LeaseContent {
  /** 1 to 512 characters, no control characters. */
  readonly name: string;
  /** The worker that has it; undefined: nobody. */
  readonly owner: string | undefined;
  /** A worker that asks the owner to hand it over. */
  readonly heir: string | undefined;
  /** How far the work has come: its user's own text, "" at first. */
  readonly checkpoint: string;
  /** The work is done. Nobody takes the lease any more; it stays for those that come after it. */
  readonly finished: boolean;
  /** Leases whose work has to be done before this one's begins; one that is not there counts as done. */
  readonly after: readonly string[];
}

export interface Lease extends LeaseContent {
  /** Grows by one with every change: a fencing token, and the heartbeat of its owner. */
  readonly counter: number;
}

/** `from` undefined: it must not exist yet; `to` undefined: it is removed. Both have the same name. */
export type LeaseChange =
  | { readonly from: undefined; readonly to: LeaseContent }
  | { readonly from: Lease; readonly to: LeaseContent | undefined };

/** The lease as it is after a change, "removed", or undefined: somebody else has changed it first. */
export type LeaseResult = Lease | "removed" | undefined;

export interface LeaseStore {
  /** Errors: TRB-STORE-FAILED. */
  list(): Promise<readonly Lease[]>;
  /**
   * Makes changes to different leases, each by itself; results in input order. Errors: TRB-STORE-FAILED; then some of them may
   * have been made; `list` tells.
   */
  change(changes: readonly LeaseChange[]): Promise<readonly LeaseResult[]>;
}

/** A lease nobody has had yet. */
export const newLease = (name: string, after: readonly string[] = [], checkpoint = ""): LeaseContent => ({
  name,
  owner: undefined,
  heir: undefined,
  checkpoint,
  finished: false,
  after,
});
