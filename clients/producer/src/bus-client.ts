import { promisify } from "node:util";
import { gzip as gzipCallback } from "node:zlib";
import { PublishAnswer } from "./answer.js";
import { type Answer, Connection, errno, reasonOf } from "./connection.js";
import { ProducerError } from "./errors.js";

/** A bearer token, or where to get one: asked first, and again when the bus no longer takes the last. */
export type TokenSource = string | (() => string | Promise<string>);

export interface BusOptions {
  readonly url: string;
  readonly token: TokenSource;
  /** Connections that are kept. */
  readonly connections: number;
  /** A bus that says and takes nothing for so many milliseconds is taken for dead. */
  readonly silenceMs: number;
  readonly gzip?: boolean;
}

/** What became of a request as a whole; `sentTwice`: its events may be in the stream, whatever the answer says. */
export type Outcome = Verdict & { readonly sentTwice?: boolean };

type Verdict =
  | { readonly kind: "answered"; readonly answer: PublishAnswer; readonly retryAfterMs: number | undefined }
  /** It may do better later; `error.mayHaveLanded` where the events may be in the stream all the same. */
  | {
      readonly kind: "later";
      readonly error: ProducerError;
      readonly retryAfterMs: number | undefined;
      /** Of the answer; undefined where there was none of a bus. */
      readonly status: number | undefined;
    }
  /** Too many events or bytes at once. */
  | { readonly kind: "too-large"; readonly error: ProducerError }
  /** No event of it will ever be taken. */
  | { readonly kind: "refused"; readonly error: ProducerError };

export const PROTOBUF = "application/x-protobuf";

const AGAIN = new Set([408, 429, 500, 502, 503, 504]);
/** Answers given before anything was handed to the stream. */
const NOTHING_LANDED = new Set([408, 429]);
const MIN_GZIP_BYTES = 1024;
const MAX_RETRY_AFTER_MS = 60_000;
const gzip = promisify(gzipCallback);

/** An answer other than 200, in the terms of a publish; `retryable` says whether to ask again. */
export interface Failure {
  readonly error: ProducerError;
  readonly retryAfterMs: number | undefined;
  /** Of an answer of Tributary; undefined where it was another program's. */
  readonly status: number | undefined;
}

/** Posts bodies to a bus and tells what its answers mean. Retries nothing but a token that is no longer taken. */
export class BusClient {
  private readonly options: BusOptions;
  private readonly connection: Connection;
  private token: Promise<string> | undefined;

  /** Errors: TRB-PRODUCER-OPTIONS. */
  constructor(options: BusOptions) {
    const base = URL.canParse(options.url) ? new URL(options.url) : undefined;
    if (base?.protocol !== "http:" && base?.protocol !== "https:") {
      const message = "url: expected a base URL such as https://bus.example.com";
      throw new ProducerError("TRB-PRODUCER-OPTIONS", message);
    }
    this.options = options;
    this.connection = new Connection(base, options.connections);
  }

  /** Publishes a body of `count` events (undefined: not known) in a content type that POST /v1/events reads. */
  async publish(
    contentType: string,
    body: Uint8Array,
    count: number | undefined,
    signal?: AbortSignal,
  ): Promise<Outcome> {
    const packed = this.options.gzip === true && body.length >= MIN_GZIP_BYTES;
    const headers = {
      "content-type": contentType,
      accept: PROTOBUF,
      ...(packed ? { "content-encoding": "gzip" } : {}),
    };
    const bytes = packed ? await gzip(body, { level: 1 }) : body;
    const answer = await this.post("/v1/events", headers, bytes, signal);
    if (answer instanceof ProducerError) return withoutAnswer(answer);
    return { ...outcomeOf(answer, count), sentTwice: answer.sentTwice };
  }

  /**
   * Any answer, after a fresh token where the first was not taken. A returned error is retryable: the bus was not met,
   * or there is no token.
   */
  async post(
    path: string,
    headers: Readonly<Record<string, string>>,
    body: Uint8Array,
    signal?: AbortSignal,
  ): Promise<Answer | ProducerError> {
    for (let renewed = false; ; renewed = true) {
      this.token ??= this.fetchToken();
      const used = this.token;
      let token: string;
      try {
        token = await used;
      } catch (cause) {
        if (this.token === used) this.token = undefined;
        return new ProducerError("TRB-PRODUCER-TOKEN", "token: the provider failed", {
          retryable: true,
          cause,
        });
      }
      const authorization = `Bearer ${token}`;
      const options = { silenceMs: this.options.silenceMs, signal };
      const answer = await answered(this.connection.post(path, { ...headers, authorization }, body, options));
      if (answer instanceof ProducerError) return answer;
      if (answer.status !== 401 || renewed || typeof this.options.token === "string") return answer;
      // Several requests may be refused at once: one of them asks, all use what it gets.
      if (this.token === used) this.token = undefined;
    }
  }

  /**
   * Puts bytes where the bus has said, on it or elsewhere; no token goes with them. A returned error is retryable: there
   * was no answer.
   */
  put(
    to: string,
    headers: Readonly<Record<string, string>>,
    body: Uint8Array,
    signal?: AbortSignal,
  ): Promise<Answer | ProducerError> {
    return answered(this.connection.put(to, headers, body, { silenceMs: this.options.silenceMs, signal }));
  }

  close(): void {
    this.connection.close();
  }

  private async fetchToken(): Promise<string> {
    const { token, silenceMs } = this.options;
    if (typeof token === "string") return token;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error("the token provider did not answer in time")), silenceMs);
    });
    try {
      return await Promise.race([token(), late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

function withoutAnswer(error: ProducerError): Outcome {
  return { kind: "later", error, retryAfterMs: undefined, status: undefined };
}

function outcomeOf(answer: Answer, count: number | undefined): Outcome {
  const { status } = answer;
  if (status === 200) {
    const decoded = decode(answer.body);
    if (decoded !== undefined && (count === undefined || decoded.count === count)) {
      return { kind: "answered", answer: decoded, retryAfterMs: retryAfterOf(answer) };
    }
    return withoutAnswer(unreachable("expected a PublishResponse for each event, found something else"));
  }
  const failure = failureOf(answer);
  const { error } = failure;
  if (error.retryable) return { kind: "later", ...failure };
  return { kind: status === 413 ? "too-large" : "refused", error };
}

/** What an answer other than 200 says. */
export function failureOf(answer: Answer): Failure {
  const { status } = answer;
  const said = errorBody(answer);
  const code = said?.code ?? "TRB-PRODUCER-UNREACHABLE";
  const message = said?.message ?? `expected an answer of Tributary, found status ${status}`;
  const mayHaveLanded = !NOTHING_LANDED.has(status);
  // Too large is what these events are; anything else would be said of others as well.
  const refused = status === 413 && said !== undefined ? "event" : "request";
  const error = new ProducerError(
    code,
    message,
    AGAIN.has(status) ? { retryable: true, mayHaveLanded } : { refused },
  );
  return { error, retryAfterMs: retryAfterOf(answer), status: said && status };
}

function decode(body: Uint8Array): PublishAnswer | undefined {
  try {
    return new PublishAnswer(body);
  } catch {
    return undefined;
  }
}

function errorBody(answer: Answer): { readonly code: string; readonly message: string } | undefined {
  try {
    const { error } = JSON.parse(answer.body.toString("utf8")) as {
      error?: { code?: unknown; message?: unknown };
    };
    if (typeof error?.code === "string" && error.code.startsWith("TRB-")) {
      return { code: error.code, message: String(error.message ?? error.code) };
    }
  } catch {
    // Not our error body: something between us and the bus answered, or another program did.
  }
  return undefined;
}

/** In seconds or as a date; no longer than a minute, as a clock may be wrong. */
function retryAfterOf(answer: Answer): number | undefined {
  const text = answer.headers["retry-after"];
  if (text === undefined) return undefined;
  const ms = /^\s*[\d.]+\s*$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return ms > 0 ? Math.min(ms, MAX_RETRY_AFTER_MS) : undefined;
}

/** Failures to connect: nothing was sent. */
const NOT_CONNECTED = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"]);

/** The answer, or that there was none. */
const answered = (answer: Promise<Answer>): Promise<Answer | ProducerError> =>
  answer.catch((cause: unknown) => unreachable(reasonOf(cause), cause));

export function unreachable(reason: string, cause?: unknown): ProducerError {
  const mayHaveLanded = !NOT_CONNECTED.has(errno(cause) ?? "");
  return new ProducerError("TRB-PRODUCER-UNREACHABLE", reason, { retryable: true, mayHaveLanded, cause });
}
