import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test, vi } from "vitest";
import { leaseStoreContract } from "../../test/contract/lease-store.js";
import { TributaryError } from "../base/errors.js";
import { FileStore } from "../storage/file-store.js";
import { type Lease, newLease } from "./lease-store.js";
import { type LeaseObjects, ObjectLeaseStore } from "./object-lease-store.js";

const folder = mkdtempSync(join(tmpdir(), "tributary-leases-"));
afterAll(() => rmSync(folder, { recursive: true }));
let lakes = 0;
const openFiles = () => {
  const lake = join(folder, String(++lakes));
  return FileStore.open({ folder: lake, staging: join(folder, "staging") });
};

leaseStoreContract(async () => {
  const objects = await openFiles();
  return { open: async () => new ObjectLeaseStore(objects, "leases/ingest"), races: 25 };
});

let objects: LeaseObjects;
const asked: string[] = [];
let doubt: "put" | "lost" | undefined;

beforeEach(async () => {
  const files = await openFiles();
  asked.length = 0;
  doubt = undefined;
  objects = {
    get: (key) => {
      asked.push("get");
      return files.get(key);
    },
    putIfAbsent: async (key, bytes) => {
      asked.push("put");
      const how = doubt;
      doubt = undefined;
      const result = how === "lost" ? undefined : await files.putIfAbsent(key, bytes);
      if (how !== undefined) throw new TributaryError("TRB-STORE-FAILED");
      return result!;
    },
    list: (prefix, startAfter) => {
      asked.push("list");
      return files.list(prefix, startAfter);
    },
    delete: (keys) => files.delete(keys),
  };
});
afterEach(() => vi.restoreAllMocks());

const count = async (prefix = "leases/") => {
  let found = 0;
  for await (const _ of objects.list(prefix)) found++;
  return found;
};
const lease = (result: unknown) => result as Lease;

test("a look at what has not changed is one request; so is a change of all a worker has", async () => {
  const store = new ObjectLeaseStore(objects, "leases/a");
  const leases = (
    await store.change(Array.from({ length: 50 }, (_, i) => ({ from: undefined, to: newLease(`l${i}`) })))
  ).map(lease);
  asked.length = 0;
  await store.list();
  expect(asked).toEqual(["get"]);
  asked.length = 0;
  await store.change(leases.map((from) => ({ from, to: { ...from, owner: "me" } })));
  expect(asked).toEqual(["put"]);
});

test("a put that ends in doubt is settled by reading back", async () => {
  const store = new ObjectLeaseStore(objects, "leases/a");
  doubt = "put";
  const [made] = await store.change([{ from: undefined, to: newLease("a") }]);
  expect(made).toMatchObject({ name: "a", counter: 1 });
  doubt = "lost";
  const change = [{ from: lease(made), to: { ...lease(made), owner: "me" } }];
  await expect(store.change(change)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  expect(await store.change(change)).toMatchObject([{ owner: "me", counter: 2 }]);
});

test("older records go, and one who slept meanwhile finds the newest", async () => {
  const store = new ObjectLeaseStore(objects, "leases/a");
  const sleeper = new ObjectLeaseStore(objects, "leases/a");
  let newest = lease((await store.change([{ from: undefined, to: newLease("a") }]))[0]);
  const first = newest;
  await sleeper.list();
  const { list } = objects;
  // All but the newest were put long ago.
  objects = Object.assign(objects, {
    list: async function* (prefix: string, startAfter?: string) {
      const found: { key: string; modifiedAt: number }[] = [];
      for await (const object of list(prefix, startAfter)) found.push(object);
      for (const [i, object] of found.entries()) {
        yield i < found.length - 1 ? { ...object, modifiedAt: object.modifiedAt - 3_600_000 } : object;
      }
    },
  });
  for (let i = 0; i < 200; i++) {
    newest = lease((await store.change([{ from: newest, to: { ...newest, checkpoint: String(i) } }]))[0]);
  }
  expect(await count()).toBeLessThan(130);
  // The sleeper's next number is free again: only its clock tells that it must not believe so.
  vi.spyOn(Date, "now").mockReturnValue(Date.now() + 3_600_000);
  expect(await sleeper.change([{ from: first, to: { ...first, owner: "sleeper" } }])).toEqual([undefined]);
  expect(await sleeper.list()).toEqual([newest]);
});
