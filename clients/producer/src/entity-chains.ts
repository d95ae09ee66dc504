import type { Entry } from "./entry.js";

/** The unsettled events of each entity, oldest first. Only the first of a chain may be sent. */
export class EntityChains {
  private readonly chains = new Map<string, Entry[]>();

  /** True when nothing of its entity is before it. */
  add(entry: Entry): boolean {
    const key = keyOf(entry);
    const chain = this.chains.get(key);
    if (chain === undefined) this.chains.set(key, [entry]);
    else chain.push(entry);
    return chain === undefined;
  }

  /** Takes the first of its chain away; the one that may be sent now. Those given up meanwhile go with it. */
  shift(entry: Entry, dropped: (entry: Entry) => void): Entry | undefined {
    const key = keyOf(entry);
    const chain = this.chains.get(key)!;
    chain.shift();
    while (chain[0]?.done) dropped(chain.shift()!);
    if (chain.length === 0) this.chains.delete(key);
    return chain[0];
  }
}

/** Two entities may share a key where a bus would refuse both; then one waits for the other. */
const keyOf = ({ entity }: Entry): string => `${entity.tenantId}\0${entity.entityType}\0${entity.entityId}`;
