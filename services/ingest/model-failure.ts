import { engineErrorOf, isDataError, isInterrupt, isMemoryError } from "../base/engine-error.js";

export type PoisonCode =
  | "TRB-MODEL-FAILED"
  | "TRB-EVENT-PAYLOAD-DECODE"
  | "TRB-EVENT-PAYLOAD-MISSING"
  | "TRB-EVENT-PAYLOAD-CORRUPT"
  | "TRB-INGEST-MEMORY"
  | "TRB-INGEST-TIME";

export interface FailureDetails {
  /** True when every suspect is known to fail. */
  readonly certain?: boolean;
  /** The events that went to the engine last before it failed, where it had not asked for more. */
  readonly at?: readonly number[] | undefined;
}

/** A model cannot digest some events of a slice; which ones is to be found out. */
export class ModelFailure extends Error {
  readonly certain: boolean;
  readonly at: readonly number[] | undefined;

  constructor(
    readonly code: PoisonCode,
    readonly reason: string,
    /** Events, as indices in the slice, among which the failing ones are. */
    readonly suspects: readonly number[],
    { certain = false, at }: FailureDetails = {},
  ) {
    super(reason);
    this.certain = certain;
    this.at = at;
  }

  /** Memory or time did not suffice: fewer events need less of it, and others may have used it. */
  get exhausted(): boolean {
    return (this.code === "TRB-INGEST-MEMORY" || this.code === "TRB-INGEST-TIME") && !this.certain;
  }
}

/** An event that a model cannot digest. */
export interface Poison {
  /** Index in the slice. */
  readonly event: number;
  readonly code: PoisonCode;
  readonly reason: string;
}

/** What is a fault of the events, and not of the machine or of ours; else undefined. */
export function modelFailureOf(
  error: unknown,
  suspects: readonly number[],
  at?: readonly number[],
): ModelFailure | undefined {
  // Of typed arrays that do not fit into memory any more.
  const told = error instanceof RangeError ? OUT_OF_MEMORY : engineErrorOf(error);
  if (told === undefined) return undefined;
  if (isMemoryError(told)) return new ModelFailure("TRB-INGEST-MEMORY", MEMORY_REASON, suspects, { at });
  if (isInterrupt(told)) return new ModelFailure("TRB-INGEST-TIME", TIME_REASON, suspects, { at });
  if (!isDataError(told)) return undefined;
  return new ModelFailure("TRB-MODEL-FAILED", told.message.split("\n")[0]!, suspects);
}

const OUT_OF_MEMORY = { type: "Out of Memory", message: "", subtype: undefined, position: undefined };
const MEMORY_REASON = "the model needs more memory for the event than ingest.duckdbMemoryBytes";
const TIME_REASON = "the model needs more time for the event than ingest.modelTimeoutMs";
