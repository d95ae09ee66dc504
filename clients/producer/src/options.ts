import type { TokenSource } from "./bus-client.js";
import { ProducerError } from "./errors.js";

export interface ProducerOptions {
  /** Base URL of the bus. */
  readonly url: string;
  readonly token: TokenSource;
  /** Events a request, 500 by default. */
  readonly maxBatchEvents?: number;
  /** Bytes of events a request, 1 MiB by default; a larger event goes alone. */
  readonly maxBatchBytes?: number;
  /** How long an event may wait for others to go with it, in ms; 5 by default. */
  readonly lingerMs?: number;
  /** Requests at a time, 4 by default. */
  readonly maxInFlight?: number;
  /** Whether bodies of 1 KiB and more are packed: less network, more CPU here and in the bus. False by default. */
  readonly gzip?: boolean;
  /**
   * Payloads of more bytes, 1,000,000 by default, go to the object store by the bus's POST /v1/uploads, and their events
   * refer to them. No less than 65,535: the bus wants smaller ones in their events.
   */
  readonly uploadAboveBytes?: number;
  /** Bytes of events that may wait or be in flight, 16 MiB by default. A larger event is let in when nothing else is. */
  readonly maxBufferedBytes?: number;
  /** When that is full, `send` waits for room (default) or rejects with TRB-PRODUCER-FULL. */
  readonly whenFull?: "wait" | "reject";
  /** From `send` until an event is accepted or given up, in ms; two minutes by default. */
  readonly deadlineMs?: number;
  /** A bus that says and takes nothing for so many ms is taken for dead; 30 seconds by default. */
  readonly silenceMs?: number;
}

const DEFAULTS = {
  maxBatchEvents: 500,
  maxBatchBytes: 1024 * 1024,
  lingerMs: 5,
  maxInFlight: 4,
  uploadAboveBytes: 1_000_000,
  maxBufferedBytes: 16 * 1024 * 1024,
  deadlineMs: 120_000,
  silenceMs: 30_000,
} as const;

const LEAST: Partial<Record<keyof typeof DEFAULTS, number>> = { lingerMs: 0, uploadAboveBytes: 65_535 };

export type Settings = Required<ProducerOptions>;

/** The options with their defaults. Errors: TRB-PRODUCER-OPTIONS. */
export function settingsOf(options: ProducerOptions): Settings {
  const settings: Settings = { ...DEFAULTS, gzip: false, whenFull: "wait", ...options };
  for (const name of Object.keys(DEFAULTS) as (keyof typeof DEFAULTS)[]) {
    const value = settings[name];
    const least = LEAST[name] ?? 1;
    if (!Number.isInteger(value) || value < least || value > 2 ** 31 - 1) {
      throw new ProducerError("TRB-PRODUCER-OPTIONS", `${name}: expected a whole number from ${least}`);
    }
  }
  if (settings.whenFull !== "wait" && settings.whenFull !== "reject") {
    throw new ProducerError("TRB-PRODUCER-OPTIONS", "whenFull: expected wait or reject");
  }
  return settings;
}
