import { setTimeout as sleep } from "node:timers/promises";
import { ProducerError } from "./errors.js";
import type { ChangeEvent } from "./event.js";
import { pauseMs } from "./pause.js";
import type { Producer } from "./producer.js";

/** What became of a lent event. "kept" is lent again; an error moves it to the rejected ones. */
export type Settlement = "delivered" | "kept" | ProducerError;

export interface LendLimits {
  /** At most so many events. */
  readonly events: number;
  /** And so many bytes of payload, but for the first. */
  readonly bytes: number;
}

/**
 * Events that a service wrote in the transaction of the change they tell of, and that wait to be published.
 *
 * - Order: of one entity events are lent in the order of their versions, and none while an earlier one is lent to
 *   somebody else, as far as the store can tell (a borrower that froze may come back and send something once more).
 * - Durability: an event stays until it is settled as delivered or rejected; whoever dies with it lets go of it.
 * - Idempotency: an event may be lent more than once.
 */
export interface Outbox {
  /**
   * Lends some of the oldest events to `publish`, and settles them as it says, in their order. Resolves to how many
   * were lent: 0 when none waits that is not lent already. Errors: those of the store; nothing is settled then.
   */
  lend(
    limits: LendLimits,
    publish: (events: readonly ChangeEvent[]) => Promise<readonly Settlement[]>,
  ): Promise<number>;
}

export interface RelayOptions {
  readonly outbox: Outbox;
  readonly producer: Producer;
  /** Loans at a time, 2 by default. */
  readonly loans?: number;
  /** Events a loan, 500 by default. */
  readonly maxEvents?: number;
  /** Bytes of payload a loan, 4 MiB by default. */
  readonly maxBytes?: number;
  /** How long a loan goes on beginning to send, in ms; 30,000 by default. What is left is lent again. */
  readonly loanMs?: number;
  /** How long to wait in ms when nothing waits; 100 by default. */
  readonly idleMs?: number;
  /** Told of what keeps events from being delivered: the store's errors and the producer's. */
  readonly onTrouble?: (error: unknown) => void;
  /** Told of each event that the bus refused for good; it is among the rejected ones. */
  readonly onRejected?: (event: ChangeEvent, error: ProducerError) => void;
}

/**
 * Publishes what an outbox holds, until it is stopped. Several may run, in as many processes: the outbox shares itself
 * between them.
 */
export class OutboxRelay {
  private readonly options: RelayOptions;

  constructor(options: RelayOptions) {
    this.options = options;
  }

  /** Resolves when `signal` aborts and what was lent is settled; an event in flight is waited for. */
  async run(signal: AbortSignal): Promise<void> {
    const loans = Array.from({ length: this.options.loans ?? 2 }, () => this.borrow(signal));
    await Promise.all(loans);
  }

  private async borrow(signal: AbortSignal): Promise<void> {
    const { outbox, maxEvents = 500, maxBytes = 4 * 1024 * 1024, idleMs = 100, onTrouble } = this.options;
    const limits = { events: maxEvents, bytes: maxBytes };
    let failures = 0;
    while (!signal.aborted) {
      let lent = 0;
      let troubles = 0;
      const trouble = (error: unknown) => {
        onTrouble?.(error);
        troubles++;
      };
      try {
        lent = await outbox.lend(limits, (events) => this.publish(events, signal, trouble));
      } catch (error) {
        trouble(error);
      }
      failures = troubles > 0 ? failures + 1 : 0;
      const wait = failures > 0 ? pauseMs(failures) : lent === 0 ? idleMs : 0;
      if (wait > 0) await sleep(wait, undefined, { signal }).catch(() => undefined);
    }
  }

  /** Entities go side by side; of one, nothing follows an event that was not settled. */
  private async publish(
    events: readonly ChangeEvent[],
    signal: AbortSignal,
    trouble: (error: unknown) => void,
  ): Promise<readonly Settlement[]> {
    const until = performance.now() + (this.options.loanMs ?? 30_000);
    const settlements = new Array<Settlement>(events.length).fill("kept");
    const entities = new Map<string, number[]>();
    for (const [i, { tenantId, entityType, entityId }] of events.entries()) {
      const key = JSON.stringify([tenantId, entityType, entityId]);
      const places = entities.get(key);
      if (places === undefined) entities.set(key, [i]);
      else places.push(i);
    }
    const one = async (places: readonly number[]) => {
      for (const i of places) {
        if (signal.aborted || performance.now() > until) return;
        const settlement = await this.send(events[i]!, trouble);
        settlements[i] = settlement;
        if (settlement === "kept") return;
      }
    };
    await Promise.all(Array.from(entities.values(), one));
    return settlements;
  }

  private async send(event: ChangeEvent, trouble: (error: unknown) => void): Promise<Settlement> {
    const { producer, onRejected } = this.options;
    try {
      await producer.send(event);
      return "delivered";
    } catch (error) {
      if (
        error instanceof ProducerError &&
        (error.refused === "event" || error.code === "TRB-PRODUCER-EVENT")
      ) {
        onRejected?.(event, error);
        return error;
      }
      trouble(error);
      return "kept";
    }
  }
}
