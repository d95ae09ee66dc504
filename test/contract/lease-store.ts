import { beforeEach, describe, expect, test } from "vitest";
import { type Lease, type LeaseStore, newLease } from "../../services/lease/lease-store.js";

/** `open` gives each worker a store of its own over the same leases, empty at first. */
export interface LeaseFixture {
  open(): Promise<LeaseStore>;
  readonly races: number;
}

const made = (result: Awaited<ReturnType<LeaseStore["change"]>>[number]): Lease => {
  if (result === undefined || result === "removed") throw new Error(`expected a lease, found ${result}`);
  return result;
};

/** What every adapter of the lease port has to do. */
export function leaseStoreContract(make: () => Promise<LeaseFixture>): void {
  describe("lease store", () => {
    let fixture: LeaseFixture;
    let store: LeaseStore;
    let other: LeaseStore;
    beforeEach(async () => {
      fixture = await make();
      store = await fixture.open();
      other = await fixture.open();
    });
    const create = async (name: string) =>
      made((await store.change([{ from: undefined, to: newLease(name) }]))[0]);
    const byName = async (from: LeaseStore) =>
      [...(await from.list())].sort((a, b) => (a.name < b.name ? -1 : 1));

    test("what is made is listed with all its fields, by others too", async () => {
      expect(await store.list()).toEqual([]);
      const content = {
        ...newLease("c/shard-2", ["c/shard-0", "c/shard-1"], "0001.7@99"),
        owner: "worker ü",
        heir: "heir",
        finished: true,
      };
      const results = await store.change([
        { from: undefined, to: content },
        { from: undefined, to: newLease("c/shard-0") },
      ]);
      expect(results).toEqual([
        { ...content, counter: 1 },
        { ...newLease("c/shard-0"), counter: 1 },
      ]);
      expect(await byName(other)).toEqual([results[1], results[0]]);
      expect(await byName(store)).toEqual([results[1], results[0]]);
    });

    test("each change moves the counter; one from an older record is a conflict, and changes nothing", async () => {
      const first = await create("a");
      const second = made((await other.change([{ from: first, to: { ...first, owner: "b" } }]))[0]);
      expect(second).toEqual({ ...first, owner: "b", counter: 2 });
      expect(await store.change([{ from: first, to: { ...first, owner: "a" } }])).toEqual([undefined]);
      expect(await store.change([{ from: first, to: undefined }])).toEqual([undefined]);
      expect(await store.change([{ from: undefined, to: newLease("a") }])).toEqual([undefined]);
      expect(await store.list()).toEqual([second]);
      const third = made((await store.change([{ from: second, to: { ...second, owner: undefined } }]))[0]);
      expect(await other.list()).toEqual([{ ...first, counter: 3 }]);
      expect(await other.change([{ from: third, to: undefined }])).toEqual(["removed"]);
      expect(await store.list()).toEqual([]);
    });

    test("of several changes each goes by itself", async () => {
      const [a, b, c] = [await create("a"), await create("b"), await create("c")];
      await other.change([{ from: b, to: { ...b, owner: "other" } }]);
      const results = await store.change([a, b, c].map((from) => ({ from, to: { ...from, owner: "me" } })));
      expect(results.map((result) => result !== undefined)).toEqual([true, false, true]);
      expect((await byName(other)).map(({ owner }) => owner)).toEqual(["me", "other", "me"]);
    });

    test("of many workers at once one wins", async () => {
      const workers = await Promise.all(Array.from({ length: 8 }, () => fixture.open()));
      let lease = made(
        await Promise.all(
          workers.map(async (worker) => (await worker.change([{ from: undefined, to: newLease("a") }]))[0]),
        ).then((results) => {
          expect(results.filter((result) => result !== undefined)).toHaveLength(1);
          return results.find((result) => result !== undefined);
        }),
      );
      for (let round = 0; round < fixture.races; round++) {
        const from = lease;
        const results = await Promise.all(
          workers.map(
            async (worker, i) => (await worker.change([{ from, to: { ...from, owner: `w${i}` } }]))[0],
          ),
        );
        const winners = results.filter((result) => result !== undefined);
        expect(winners).toHaveLength(1);
        lease = made(winners[0]);
        expect(lease.owner).toBe(`w${results.indexOf(lease)}`);
        expect(await store.list()).toEqual([lease]);
      }
    });

    test("workers that change different leases at once all get through", async () => {
      const names = Array.from({ length: 6 }, (_, i) => `lease-${i}`);
      const leases = await Promise.all(names.map((name) => create(name)));
      const ends = await Promise.all(
        leases.map(async (first) => {
          const mine = await fixture.open();
          let lease = first;
          for (let i = 0; i < 10; i++) {
            lease = made((await mine.change([{ from: lease, to: { ...lease, checkpoint: String(i) } }]))[0]);
          }
          return lease;
        }),
      );
      expect(await byName(store)).toEqual(ends);
      expect(new Set(ends.map(({ counter }) => counter))).toEqual(new Set([11]));
    });
  });
}
