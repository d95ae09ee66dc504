import type { ObjectStore } from "../../services/storage/object-store.js";
import { overriding } from "./faulty-store.js";
import type { Random } from "./lake.js";

/**
 * Runs several actors, processes as it were, so that one operation on the store happens at a time, and which one is
 * decided by a seed: an actor whose turn it is goes on until its next operation, or its end. An actor can be killed at
 * an operation: that happens or does not, and the actor never hears of it.
 */
export class TurnScheduler {
  private readonly actors = new Set<Actor>();
  /** Operations so far. */
  steps = 0;

  constructor(
    private readonly random: Random,
    /** Called before each operation; kills the actor when it returns true. */
    private readonly before: (actor: string, operation: string) => boolean = () => false,
  ) {}

  /** Runs `work`, whose store it schedules; resolves to undefined when the actor was killed. */
  start<T>(
    name: string,
    inner: ObjectStore,
    work: (store: ObjectStore) => Promise<T>,
  ): Promise<T | undefined> {
    const actor = new Actor(name);
    this.actors.add(actor);
    const ended = work(actor.over(inner)).finally(() => {
      actor.end();
    });
    return Promise.race([ended, actor.killed.then(() => undefined)]);
  }

  /** Runs until all actors, also those started meanwhile, have ended or are dead. */
  async run(): Promise<void> {
    for (;;) {
      for (const actor of this.actors) {
        await actor.waits();
        if (actor.ended) this.actors.delete(actor);
      }
      // What an end has set going may have started others.
      await new Promise((resolve) => setImmediate(resolve));
      const all = [...this.actors];
      if (all.length === 0) return;
      if (!all.every((actor) => actor.isWaiting)) continue;
      const actor = this.random.pick(all);
      this.steps++;
      const dies = this.before(actor.name, actor.next);
      if (dies) this.actors.delete(actor);
      await actor.step(dies, this.random);
    }
  }
}

class Actor {
  ended = false;
  private readonly queue: { readonly name: string; readonly go: (happens: boolean) => Promise<void> }[] = [];
  private dead = false;
  private notify: () => void = () => undefined;
  private tellKilled: () => void = () => undefined;
  readonly killed = new Promise<void>((resolve) => {
    this.tellKilled = resolve;
  });

  constructor(readonly name: string) {}

  get isWaiting(): boolean {
    return this.queue.length > 0;
  }

  get next(): string {
    return this.queue[0]!.name;
  }

  /** What it has left running goes on unscheduled. */
  end(): void {
    this.ended = true;
    for (const { go } of this.queue.splice(0)) void go(true);
    this.notify();
  }

  /** Resolves when it has come to an operation, or to its end. */
  waits(): Promise<void> {
    if (this.ended || this.isWaiting) return Promise.resolve();
    return new Promise((resolve) => {
      this.notify = resolve;
    });
  }

  /** Lets the next operation happen; one that dies of it is never told. */
  async step(dies: boolean, random: Random): Promise<void> {
    const { go } = this.queue.shift()!;
    if (!dies) return go(true);
    this.dead = true;
    await go(random.chance(0.5));
    this.tellKilled();
  }

  private gated(name: string, operation: () => Promise<unknown>): Promise<unknown> {
    if (this.dead) return new Promise(() => undefined);
    if (this.ended) return operation();
    return new Promise((resolve, reject) => {
      this.queue.push({
        name,
        go: async (happens) => {
          const result = happens ? await settled(operation) : undefined;
          // Whoever dies of it gets no answer, whether or not it happens.
          if (this.dead || result === undefined) return;
          if ("value" in result) resolve(result.value);
          else reject(result.error);
        },
      });
      this.notify();
    });
  }

  over(inner: ObjectStore): ObjectStore {
    return overriding(inner, {
      get: (key) => this.gated(`get ${key}`, () => inner.get(key)) as Promise<Buffer | undefined>,
      getRange: (key, start, end) =>
        this.gated(`getRange ${key}`, () => inner.getRange(key, start, end)) as Promise<Buffer>,
      stat: (key) => this.gated(`stat ${key}`, () => inner.stat(key)) as ReturnType<ObjectStore["stat"]>,
      put: (key, bytes) => this.gated(`put ${key}`, () => inner.put(key, bytes)) as Promise<void>,
      putIfAbsent: (key, bytes) =>
        this.gated(`putIfAbsent ${key}`, () => inner.putIfAbsent(key, bytes)) as Promise<
          "created" | "exists"
        >,
      adopt: (files) => this.gated("adopt", () => inner.adopt(files)) as Promise<void>,
      delete: (keys) => this.gated("delete", () => inner.delete(keys)) as Promise<void>,
      withLocal: async (keys, use) => {
        await this.gated("withLocal", async () => undefined);
        return inner.withLocal(keys, use);
      },
    });
  }
}

type Settled = { readonly value: unknown } | { readonly error: unknown };

const settled = (operation: () => Promise<unknown>): Promise<Settled> =>
  operation().then(
    (value) => ({ value }),
    (error: unknown) => ({ error }),
  );
