import { TributaryError } from "../../services/base/errors.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { Random, seeds } from "./lake.js";

/** What becomes of the operation at which a fault is due. */
export type Fault =
  /** It does not happen and fails; those after it go well again. */
  | "fails"
  /** It happens and yet fails: the answer was lost. */
  | "happens-and-fails"
  /** It does not happen, and nothing after it ever does: the process is gone. */
  | "crash";

const OPERATIONS = ["get", "getRange", "stat", "put", "putIfAbsent", "adopt", "confirm", "delete"] as const;
type Operation = (typeof OPERATIONS)[number];

/** The store with some operations replaced. */
export function overriding(inner: ObjectStore, operations: Partial<ObjectStore>): ObjectStore {
  return {
    get: (key) => inner.get(key),
    getRange: (key, start, end) => inner.getRange(key, start, end),
    stat: (key) => inner.stat(key),
    put: (key, bytes) => inner.put(key, bytes),
    putIfAbsent: (key, bytes) => inner.putIfAbsent(key, bytes),
    adopt: (files) => inner.adopt(files),
    staging: inner.staging,
    leaseBytes: inner.leaseBytes,
    withLocal: (keys, use, options) => inner.withLocal(keys, use, options),
    list: (prefix, startAfter) => inner.list(prefix, startAfter),
    confirm: (keys) => inner.confirm(keys),
    presignPut: (key, content, lifeMs) => inner.presignPut(key, content, lifeMs),
    delete: (keys) => inner.delete(keys),
    ...operations,
  };
}

/** An object store that fails at one operation, by number, in a given way. */
export class FaultyStore {
  /** Operations so far, those that change nothing included. */
  count = 0;
  /** Name of the operation that met the fault. */
  victim: string | undefined;
  private at = Number.POSITIVE_INFINITY;
  private fault: Fault = "fails";
  private dead = false;
  private tellGone: () => void = () => undefined;
  /** Resolves when a crash has come about. */
  gone: Promise<void> = new Promise(() => undefined);

  readonly store: ObjectStore;

  constructor(inner: ObjectStore) {
    const wrapped: Partial<Record<Operation, unknown>> = {};
    for (const name of OPERATIONS) {
      const run = inner[name].bind(inner) as (...args: unknown[]) => Promise<unknown>;
      wrapped[name] = (...args: unknown[]) => this.pass(name, () => run(...args));
    }
    this.store = overriding(inner, wrapped as Partial<ObjectStore>);
  }

  /** The operation with this number, counted from now on, meets the fault. */
  arm(number: number, fault: Fault): void {
    this.count = 0;
    this.at = number;
    this.fault = fault;
    this.dead = false;
    this.gone = new Promise((resolve) => {
      this.tellGone = resolve;
    });
  }

  /** No fault from now on. True when it had come about. */
  disarm(): boolean {
    const struck = this.count > this.at;
    this.at = Number.POSITIVE_INFINITY;
    return struck;
  }

  private async pass(name: Operation, run: () => Promise<unknown>): Promise<unknown> {
    // A process that is gone gets no answer at all.
    if (this.dead) return new Promise(() => undefined);
    const due = this.count++ === this.at;
    if (!due) return run();
    this.victim = name;
    switch (this.fault) {
      case "fails":
        throw new TributaryError("TRB-STORE-FAILED", "a fault of the test");
      case "happens-and-fails":
        await run();
        throw new TributaryError("TRB-STORE-FAILED", "a fault of the test");
      case "crash":
        return this.die();
    }
  }

  private die(): Promise<never> {
    this.dead = true;
    this.tellGone();
    return new Promise(() => undefined);
  }
}

/** A round mostly waits. */
const TOGETHER = 4;

/**
 * Runs `round` with the numbers of operations, some at a time, until it resolves to false: there are no more. Which
 * ones is left to chance: a run takes little time, and many of them try all. One in `few` is tried, all of them with
 * TEST_ALL_FAULTS. Resolves to the number that was reached.
 */
export async function eachOperation(round: (at: number) => Promise<boolean>, few = 4): Promise<number> {
  const [seed] = seeds(0);
  console.info(`operations: TRIBUTARY_SEED=${seed}`);
  const random = new Random(seed!);
  const step = process.env.TEST_ALL_FAULTS === undefined ? few : 1;
  let at = 0;
  for (let more = true; more; at += TOGETHER * step) {
    const numbers = Array.from({ length: TOGETHER }, (_, i) => at + i * step + random.below(step));
    more = (await Promise.all(numbers.map(round))).every(Boolean);
  }
  return at;
}
