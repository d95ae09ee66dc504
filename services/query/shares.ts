import { TributaryError } from "../base/errors.js";

export interface ShareLimits {
  /** Queries that run at once. */
  readonly running: number;
  /** Of these, what one tenant may have. */
  readonly runningPerTenant: number;
  /** Queries that wait, and what one tenant may have of these. */
  readonly waiting: number;
  readonly waitingPerTenant: number;
}

/** A query that wants a place to run. `start` or `refuse` is called once, unless it withdraws before. */
export interface Claim {
  readonly tenant: string;
  /** Gave its place up once already, because it took long: it has one again only beside queries that do not. */
  readonly yielded: boolean;
  start(): void;
  refuse(error: TributaryError): void;
  /** Asked to give its place up: its process is ended, and it claims another with `yielded` set. */
  yield(): void;
}

interface Tenant {
  readonly waiting: Claim[];
  running: number;
  /** When it had its last turn, or came; counted in turns. */
  turn: number;
}

interface Place {
  long: boolean;
  /** For whom it is being made free. */
  successor: Claim | undefined;
}

/**
 * Who runs and who waits, fairly over tenants however many queries each of them sends.
 *
 * - A tenant runs and waits no more than its share; what is beyond it is refused with TRB-QUERY-BUSY.
 * - The tenant with the fewest running goes first; of these, the one whose last turn is longest ago.
 * - When too many wait in all, the newest of the tenant that has most waiting makes room for a tenant that has fewer.
 * - A tenant with nothing running never waits for the end of long queries: where each place has one, the newest of
 *   those that have not yet yielded does. It starts over later, and keeps its place then; until it does, it counts as
 *   running, so that a tenant makes others wait for no more than its share of long queries.
 */
export class Shares {
  private readonly limits: ShareLimits;
  /** Those that run or wait. */
  private readonly tenants = new Map<string, Tenant>();
  private readonly places = new Map<Claim, Place>();
  private turns = 0;

  constructor(limits: ShareLimits) {
    this.limits = limits;
  }

  get running(): number {
    return this.places.size;
  }

  get waiting(): number {
    let count = 0;
    for (const { waiting } of this.tenants.values()) count += waiting.length;
    return count;
  }

  /** Starts it, lets it wait, or refuses it: TRB-QUERY-BUSY. */
  claim(claim: Claim): void {
    const tenant = this.tenants.get(claim.tenant) ?? { waiting: [], running: 0, turn: ++this.turns };
    this.tenants.set(claim.tenant, tenant);
    // What has yielded was let in once, and goes before what came later.
    if (claim.yielded) tenant.waiting.unshift(claim);
    else tenant.waiting.push(claim);
    this.settle();
    if (claim.yielded || !tenant.waiting.includes(claim)) return;
    if (tenant.waiting.length > this.limits.waitingPerTenant) this.drop(tenant);
    else if (this.waiting > this.limits.waiting) this.drop(this.longest(tenant));
  }

  /** It no longer wants to run; nothing happens when it does not wait. */
  withdraw(claim: Claim): void {
    const tenant = this.tenants.get(claim.tenant);
    const at = tenant?.waiting.indexOf(claim) ?? -1;
    if (tenant === undefined || at < 0) return;
    tenant.waiting.splice(at, 1);
    this.forget(claim.tenant, tenant);
  }

  /** It has run for so long that others need not wait for its end. */
  takesLong(claim: Claim): void {
    const place = this.places.get(claim);
    if (place === undefined) return;
    place.long = true;
    this.settle();
  }

  /** Its place is free. */
  release(claim: Claim): void {
    const place = this.places.get(claim);
    const tenant = this.tenants.get(claim.tenant);
    if (place === undefined || tenant === undefined) return;
    this.places.delete(claim);
    tenant.running--;
    this.forget(claim.tenant, tenant);
    const { successor } = place;
    if (successor !== undefined && this.waits(successor)) this.start(successor);
    this.settle();
  }

  /** Refuses all that wait. */
  refuseAll(error: () => TributaryError): void {
    for (const [name, tenant] of [...this.tenants]) {
      const waiting = tenant.waiting.splice(0);
      this.forget(name, tenant);
      for (const claim of waiting) claim.refuse(error());
    }
  }

  private settle(): void {
    while (this.places.size < this.limits.running) {
      const claim = this.next(
        ({ running }) => running < this.limits.runningPerTenant,
        (one, { running, waiting }) =>
          one.yielded
            ? this.yielded < this.longPlaces
            : running + yieldedOf(waiting) < this.limits.runningPerTenant,
      );
      if (claim === undefined) break;
      this.start(claim);
    }
    this.makePlace();
  }

  private start(claim: Claim): void {
    const tenant = this.tenants.get(claim.tenant)!;
    tenant.running++;
    tenant.turn = ++this.turns;
    this.withdraw(claim);
    this.places.set(claim, { long: claim.yielded, successor: undefined });
    claim.start();
  }

  private next(
    of: (tenant: Tenant) => boolean,
    may: (claim: Claim, tenant: Tenant) => boolean,
  ): Claim | undefined {
    let best: { claim: Claim; tenant: Tenant } | undefined;
    for (const tenant of this.tenants.values()) {
      const claim = of(tenant) ? tenant.waiting.find((one) => may(one, tenant)) : undefined;
      if (claim !== undefined && (best === undefined || isBefore(tenant, best.tenant))) {
        best = { claim, tenant };
      }
    }
    return best?.claim;
  }

  /** Where each place has a long query, one yields to a tenant that has none. */
  private makePlace(): void {
    const places = [...this.places];
    if (places.length < Math.max(2, this.limits.running)) return;
    if (places.some(([, { long, successor }]) => !long || successor !== undefined)) return;
    const successor = this.next(
      ({ running, waiting }) => running + yieldedOf(waiting) === 0,
      () => true,
    );
    const newest = places.findLast(([claim]) => !claim.yielded);
    if (successor === undefined || newest === undefined) return;
    newest[1].successor = successor;
    newest[0].yield();
  }

  /** Places for queries that have yielded before: never all, so that there is always one that can be had. */
  private get longPlaces(): number {
    return Math.max(1, this.limits.running - 1);
  }

  private get yielded(): number {
    return yieldedOf([...this.places.keys()]);
  }

  private waits(claim: Claim): boolean {
    return this.tenants.get(claim.tenant)?.waiting.includes(claim) ?? false;
  }

  /** Who has most waiting; the one that asks when nobody has more. */
  private longest(asking: Tenant): Tenant {
    let longest = asking;
    for (const tenant of this.tenants.values()) {
      if (tenant.waiting.length > longest.waiting.length) longest = tenant;
    }
    return longest;
  }

  private drop(tenant: Tenant): void {
    const newest = tenant.waiting.findLast(({ yielded }) => !yielded);
    if (newest === undefined) return;
    this.withdraw(newest);
    newest.refuse(new TributaryError("TRB-QUERY-BUSY"));
  }

  private forget(name: string, tenant: Tenant): void {
    if (tenant.running === 0 && tenant.waiting.length === 0) this.tenants.delete(name);
  }
}

const yieldedOf = (claims: readonly Claim[]): number => claims.filter(({ yielded }) => yielded).length;

const isBefore = (a: Tenant, b: Tenant): boolean =>
  a.running !== b.running ? a.running < b.running : a.turn < b.turn;
