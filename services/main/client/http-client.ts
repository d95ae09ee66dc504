import { type Answer, Connection, reasonOf } from "../../../clients/producer/src/connection.js";
import { CODES, type Code } from "../../base/codes.js";
import { TributaryError } from "../../base/errors.js";

/** A server that says nothing for so long is taken for dead. */
export const SILENCE_MS = 120_000;

/** Requests to one server over connections that are kept. */
export class HttpClient {
  private readonly origin: string;
  private readonly token: string;
  private readonly connection: Connection;

  /** Errors: TRB-CLI-USAGE when `url` is no base URL. */
  constructor(options: { readonly url: string; readonly token: string; readonly connections: number }) {
    const base = baseUrl(options.url);
    this.origin = base.origin;
    this.token = options.token;
    this.connection = new Connection(base, options.connections);
  }

  /**
   * Any answer is an answer, whatever its status. Only for requests that may be repeated: one that meets a connection
   * which the server closes at that moment is sent again. Errors: TRB-CLI-UNREACHABLE.
   */
  async post(path: string, contentType: string, body: Buffer, accept = "*/*"): Promise<Answer> {
    const headers = { authorization: `Bearer ${this.token}`, "content-type": contentType, accept };
    try {
      return await this.connection.post(path, headers, body, { silenceMs: SILENCE_MS });
    } catch (cause) {
      throw new TributaryError("TRB-CLI-UNREACHABLE", `${this.origin}: ${reasonOf(cause)}`, { cause });
    }
  }

  close(): void {
    this.connection.close();
  }
}

/** The failure that an answer reports, as the error it was on the server. */
export function failureOf(answer: Answer): TributaryError {
  try {
    const { error } = JSON.parse(answer.body.toString("utf8")) as {
      error?: { code?: string; message?: string; details?: Record<string, unknown> };
    };
    if (error?.code !== undefined && error.code in CODES) {
      const details = error.details === undefined ? {} : { details: error.details };
      return new TributaryError(error.code as Code, error.message, details);
    }
  } catch {
    // Not our error body: something between us and the server answered, or another program did.
  }
  return new TributaryError(
    "TRB-CLI-UNREACHABLE",
    `expected an answer of Tributary, found status ${answer.status}`,
  );
}

/** Errors: TRB-CLI-USAGE. */
export function baseUrl(url: string): URL {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (parsed?.protocol !== "http:" && parsed?.protocol !== "https:") {
    throw new TributaryError("TRB-CLI-USAGE", "--url: expected a base URL such as http://127.0.0.1:8080");
  }
  return parsed;
}
