import type { Lease } from "./lease-store.js";

/** A lease as a worker sees it now. */
export interface SeenLease {
  readonly lease: Lease;
  /** For how long its counter has stood still before this worker's eyes, in ms. */
  readonly stillMs: number;
}

export interface LeasePlan {
  /** To be taken now: nobody has them, or whoever had them has abandoned them. */
  readonly take: readonly Lease[];
  /** To be asked for: its owner has more than its share. */
  readonly ask: Lease | undefined;
}

/**
 * What one worker should do for every worker to have its fair share. Taking goes up to the share, ceil(leases /
 * workers); asking goes one by one, and only where it makes the two loads more equal, so that shares come to rest.
 * Workers are known by the leases they own or have asked for.
 */
export function planLeases(options: {
  readonly seen: readonly SeenLease[];
  readonly worker: string;
  /** What this worker has, and whether it is about to hand it over. */
  readonly held: ReadonlyMap<string, { readonly leaving: boolean }>;
  readonly durationMs: number;
  /** How long what was handed over waits for its heir. */
  readonly heirMs: number;
}): LeasePlan {
  const { seen, worker, held, durationMs, heirMs } = options;
  const undone = new Set(seen.filter(({ lease }) => !lease.finished).map(({ lease }) => lease.name));
  const open = seen.filter(
    ({ lease }) => !lease.finished && !lease.after.some((name) => name !== lease.name && undone.has(name)),
  );
  // What is ours in the store alone was taken by a change whose answer was lost.
  const abandoned = ({ lease, stillMs }: SeenLease) =>
    lease.owner === undefined || (lease.owner === worker ? !held.has(lease.name) : stillMs >= durationMs);
  /** By worker that is alive, as far as anybody can see: what it has, or will have when it is handed over. */
  const loads = new Map<string, number>([[worker, 0]]);
  const add = (name: string) => loads.set(name, (loads.get(name) ?? 0) + 1);
  for (const one of open) {
    const { owner, heir, name } = one.lease;
    if (!abandoned(one))
      add(owner === worker && held.get(name)?.leaving === false ? worker : (heir ?? owner!));
    else if (heir !== undefined && heir !== worker && one.stillMs < heirMs) add(heir);
  }
  const share = Math.ceil(open.length / loads.size);
  const mine = loads.get(worker)!;
  const free = open
    .filter((one) => {
      const { heir } = one.lease;
      return abandoned(one) && (heir === undefined || heir === worker || one.stillMs >= heirMs);
    })
    .sort((a, b) => Number(b.lease.heir === worker) - Number(a.lease.heir === worker));
  const asked = open.some(
    (one) => one.lease.heir === worker && !abandoned(one) && one.lease.owner !== worker,
  );
  const take = free.slice(0, Math.max(0, share - mine)).map(({ lease }) => lease);
  if (asked || take.length > 0) return { take, ask: undefined };
  const [busiest, most] = [...loads].reduce((a, b) => (b[1] > a[1] ? b : a));
  if (most - mine < 2) return { take, ask: undefined };
  const ask = open.find(
    (one) => one.lease.owner === busiest && one.lease.heir === undefined && !abandoned(one),
  )?.lease;
  return { take, ask };
}
