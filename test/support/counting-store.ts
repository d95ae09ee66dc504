import type { ObjectStore } from "../../services/storage/object-store.js";
import { overriding } from "./faulty-store.js";

/** What a remote store would be asked: a request for each object that is read or written, one for a listing. */
export class CountingStore {
  readonly requests: { readonly operation: string; readonly key: string }[] = [];
  readonly store: ObjectStore;

  constructor(inner: ObjectStore) {
    const told = (operation: string, key: string) => this.requests.push({ operation, key });
    this.store = overriding(inner, {
      get: (key) => {
        told("get", key);
        return inner.get(key);
      },
      getRange: (key, start, end) => {
        told("range", key);
        return inner.getRange(key, start, end);
      },
      stat: (key) => {
        told("stat", key);
        return inner.stat(key);
      },
      put: (key, bytes) => {
        told("put", key);
        return inner.put(key, bytes);
      },
      putIfAbsent: (key, bytes) => {
        told("put if absent", key);
        return inner.putIfAbsent(key, bytes);
      },
      adopt: (files) => {
        for (const { key } of files) told("adopt", key);
        return inner.adopt(files);
      },
      list: (prefix, startAfter) => {
        told("list", prefix);
        return inner.list(prefix, startAfter);
      },
    });
  }

  /** Requests for keys below a prefix. */
  below(prefix: string): number {
    return this.requests.filter(({ key }) => key.startsWith(prefix)).length;
  }
}
