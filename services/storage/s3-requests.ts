import { setTimeout as sleep } from "node:timers/promises";
import { TributaryError } from "../base/errors.js";
import { pauseAfter } from "../base/retry.js";
import { Paces } from "./pace.js";

/** Tries of one request, the first one included. */
const ATTEMPTS = 4;
/** Slower than this over its whole length, a body is given up: the next try has another connection. */
const LEAST_BYTES_PER_MS = 256;

/** What the store asks of a server, as metrics name it. */
export type S3Operation = "get" | "range" | "head" | "put" | "create" | "upload" | "list" | "delete";
export type S3Outcome = "ok" | "absent" | "exists" | "retried" | "failed";

/** What one try of a request may use. */
export interface Attempt {
  readonly signal: AbortSignal;
  /** From now on the request may take so many milliseconds. */
  allow(ms: number): void;
  /** Of the try, from 1. */
  readonly number: number;
}

export interface RequestOptions {
  /** Time to the first byte of an answer, in ms. */
  readonly timeoutMs: number;
  readonly onRequest: (operation: S3Operation, outcome: S3Outcome) => void;
}

/** What an error of the SDK's says. */
export interface S3Failure {
  readonly kind: "absent" | "exists" | "slow-down" | "again" | "refused";
  /** For messages: the server's own name for it, or the kind of fault. */
  readonly name: string;
}

/**
 * The one policy for requests to S3, in the SDK's place (which is told to try once): each prefix has its pace, each try
 * its time, and what may go well the next time is tried again after a pause.
 */
export class S3Requests {
  private readonly paces = new Paces();

  constructor(private readonly options: RequestOptions) {}

  /** How long a request with a body of so many bytes may take, in ms. */
  timeFor(bytes: number): number {
    return this.options.timeoutMs + bytes / LEAST_BYTES_PER_MS;
  }

  /**
   * `request` is tried until it succeeds or fails for good. `expected` tells what an error means for this request;
   * undefined: it is a failure. Errors: TRB-STORE-FAILED.
   */
  async send<T>(
    operation: S3Operation,
    key: string,
    request: (attempt: Attempt) => Promise<T>,
    expected: (failure: S3Failure, attempt: number) => { readonly value: T } | undefined = () => undefined,
  ): Promise<T> {
    const prefix = key.slice(0, key.lastIndexOf("/") + 1);
    for (let number = 1; ; number++) {
      try {
        const value = await this.paces.run(
          prefix,
          () => this.attempt(number, request),
          (error) => failureOf(error).kind === "slow-down",
        );
        this.options.onRequest(operation, "ok");
        return value;
      } catch (error) {
        if (error instanceof TributaryError) throw error;
        const failure = failureOf(error);
        const value = expected(failure, number);
        if (value !== undefined) {
          this.options.onRequest(operation, failure.kind === "exists" ? "exists" : "absent");
          return value.value;
        }
        const again = failure.kind === "slow-down" || failure.kind === "again";
        if (!again || number === ATTEMPTS) {
          this.options.onRequest(operation, "failed");
          throw new TributaryError("TRB-STORE-FAILED", `${operation}: ${failure.name}`, { cause: error });
        }
        this.options.onRequest(operation, "retried");
        await sleep(pauseAfter(number));
      }
    }
  }

  private async attempt<T>(number: number, request: (attempt: Attempt) => Promise<T>): Promise<T> {
    const control = new AbortController();
    const late = () => control.abort(new SlowBody());
    let timer = setTimeout(late, this.options.timeoutMs);
    const allow = (ms: number) => {
      clearTimeout(timer);
      timer = setTimeout(late, ms);
    };
    try {
      return await request({ signal: control.signal, allow, number });
    } catch (error) {
      // The SDK words an abort as it likes.
      throw control.signal.aborted ? control.signal.reason : error;
    } finally {
      clearTimeout(timer);
    }
  }
}

class SlowBody extends Error {
  override readonly name = "Timeout";
}

const SLOW_DOWN = new Set(["SlowDown", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"]);
/** Answers that tell of a moment rather than of the request. */
const AGAIN = new Set([
  "ConditionalRequestConflict",
  "OperationAborted",
  "RequestTimeout",
  // The SDK has taken the server's clock from the answer.
  "RequestTimeTooSkewed",
]);

/** What an error says; of the server's words only the name is told, messages can hold keys. */
export function failureOf(error: unknown): S3Failure {
  const { name = "failed", $metadata } = error as { name?: string; $metadata?: { httpStatusCode?: number } };
  const status = $metadata?.httpStatusCode;
  if (name === "NoSuchBucket") return { kind: "refused", name };
  if (status === 404) return { kind: "absent", name };
  if (status === 412) return { kind: "exists", name };
  if (status === 429 || status === 503 || SLOW_DOWN.has(name)) return { kind: "slow-down", name };
  // Without a status there was no answer, or only half of one.
  const again = status === undefined ? !isOwn(error) : status >= 500 || status < 300 || AGAIN.has(name);
  return { kind: again ? "again" : "refused", name: codeOf(error) ?? name };
}

/** Faults of this process and its disk, not of the way to the server. */
const OWN = new Set(["ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "EACCES", "ENOENT", "EIO"]);
const isOwn = (error: unknown): boolean => {
  const { name } = error as { name?: string };
  return OWN.has(codeOf(error) ?? "") || error instanceof TypeError || name === "CredentialsProviderError";
};

const codeOf = (error: unknown): string | undefined => {
  const { code } = error as { code?: unknown };
  return typeof code === "string" ? code : undefined;
};
