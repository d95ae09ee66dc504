import type { ObjectStore } from "../../services/storage/object-store.js";

/** A store that runs `first` before each commit of an operation whose name begins like this, but for those within it. */
export function beforeCommit(
  store: ObjectStore,
  operation: string,
  first: (time: number) => Promise<void>,
): ObjectStore {
  let times = 0;
  return new Proxy(store, {
    get(target, name) {
      const value = Reflect.get(target, name) as unknown;
      if (typeof value !== "function") return value;
      if (name !== "putIfAbsent") return value.bind(target);
      return async (key: string, body: Buffer) => {
        if (body.includes(`"operation":"${operation}`)) await first(++times);
        return store.putIfAbsent(key, body);
      };
    },
  });
}
