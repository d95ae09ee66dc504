/**
 * Traces: what is told of single events on their way, where somebody listens. Their producers say which ones, by the
 * attribute `traceparent` (W3C Trace Context): those that are sampled there are told of here, and no others.
 */
export interface Traces {
  /** False where nobody listens: then nothing is looked for. */
  readonly on: boolean;
  /** Tells of a step, from `start` to `end` in ms since the epoch, of the trace that `traceparent` names. */
  step(name: Step, traceparent: string, start: number, end: number, about: StepAttributes): void;
  /** Resolves when all that was told has left, or cannot. */
  close(): Promise<void>;
}

/** From a request's head to its answer, until an event is durable, until it is in raw, and in a model's table. */
export type Step = "tributary.request" | "tributary.append" | "tributary.land" | "tributary.refine";
export type StepAttributes = Readonly<Record<string, string | number>>;

export const NO_TRACES: Traces = { on: false, step: () => undefined, close: async () => undefined };

/** Of so many events of one request or batch each step is told, so that tracing costs no more than its share. */
export const TRACED_AT_ONCE = 100;

/** Version 00, ids that are not all zeros, and the flag that says sampled. */
const SAMPLED = /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]$/;

export const isSampled = (traceparent: string): boolean => SAMPLED.test(traceparent);
