/** What the library itself refuses or gives up, beside the codes of the bus (docs/errors.md). */
export const PRODUCER_CODES = {
  "TRB-PRODUCER-OPTIONS": "an option has a wrong shape; the message names it",
  "TRB-PRODUCER-EVENT": "the event cannot be encoded; the message names the field",
  "TRB-PRODUCER-FULL": "`whenFull` is `reject`, and what waits fills `maxBufferedBytes`",
  "TRB-PRODUCER-DEADLINE": "not accepted within `deadlineMs`; the message says what stood in the way last",
  "TRB-PRODUCER-CLOSED": "the producer was closed before the event was accepted",
  "TRB-PRODUCER-TOKEN": "the token provider failed; `cause` is its error",
  "TRB-PRODUCER-UNREACHABLE": "no answer of a bus: no connection, a broken one, or another program's answer",
} as const;

export type ProducerCode = keyof typeof PRODUCER_CODES;

export interface ErrorOptions {
  readonly refused?: "event" | "request";
  readonly retryable?: boolean;
  readonly mayHaveLanded?: boolean;
  readonly cause?: unknown;
}

/** The only error the library throws on purpose. */
export class ProducerError extends Error {
  override readonly name = "ProducerError";
  /** One of PRODUCER_CODES, or what the bus said. */
  readonly code: string;
  /** Whether the same event may be accepted later. */
  readonly retryable: boolean;
  /**
   * False: the event is not in the stream. True: a request that held it ended without an answer, so it may be; to send
   * it again does no harm.
   */
  readonly mayHaveLanded: boolean;

  /**
   * Whether the bus refused this event for good, or the whole request and with it whatever would have been in it (the
   * token, the route). Undefined: neither, it was given up.
   */
  readonly refused: "event" | "request" | undefined;

  constructor(
    code: ProducerCode | (string & {}),
    message: string,
    { refused, retryable = false, mayHaveLanded = false, cause }: ErrorOptions = {},
  ) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.refused = refused;
    this.retryable = retryable;
    this.mayHaveLanded = mayHaveLanded;
  }
}
