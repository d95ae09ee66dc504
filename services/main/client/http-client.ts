import http from "node:http";
import https from "node:https";
import { CODES, type Code } from "../../base/codes.js";
import { errno, TributaryError } from "../../base/errors.js";

export interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: Buffer;
}

/** A server that says nothing for so long is taken for dead. */
const SILENCE_MS = 120_000;

/** Requests to one server over connections that are kept. */
export class HttpClient {
  private readonly base: URL;
  private readonly token: string;
  private readonly agent: http.Agent;

  /** Errors: TRB-CLI-USAGE when `url` is no base URL. */
  constructor(options: { readonly url: string; readonly token: string; readonly connections: number }) {
    this.base = baseUrl(options.url);
    this.token = options.token;
    const keep = { keepAlive: true, maxSockets: options.connections };
    this.agent = this.base.protocol === "https:" ? new https.Agent(keep) : new http.Agent(keep);
  }

  /** Scheme, host and port: what tells servers apart. */
  get origin(): string {
    return this.base.origin;
  }

  /**
   * Any answer is an answer, whatever its status. Only for requests that may be repeated: one that meets a connection
   * which the server closes at that moment is sent again. Errors: TRB-CLI-UNREACHABLE.
   */
  async post(path: string, contentType: string, body: Buffer, accept = "*/*"): Promise<Answer> {
    const headers = {
      authorization: `Bearer ${this.token}`,
      "content-type": contentType,
      "content-length": body.length,
      accept,
    };
    for (;;) {
      const stale = { reused: false };
      try {
        return await this.request(path, headers, body, stale);
      } catch (cause) {
        const code = errno(cause);
        if (stale.reused && (code === "ECONNRESET" || code === "EPIPE")) continue;
        throw new TributaryError("TRB-CLI-UNREACHABLE", `${this.origin}: ${reasonOf(code)}`, { cause });
      }
    }
  }

  close(): void {
    this.agent.destroy();
  }

  private request(
    path: string,
    headers: http.OutgoingHttpHeaders,
    body: Buffer,
    stale: { reused: boolean },
  ): Promise<Answer> {
    const { request: start } = this.base.protocol === "https:" ? https : http;
    return new Promise((resolve, reject) => {
      const url = new URL(this.base.pathname.replace(/\/$/, "") + path, this.base);
      const request = start(url, { method: "POST", headers, agent: this.agent }, (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", reject);
        response.on("end", () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            body: Buffer.concat(chunks),
          }),
        );
      });
      request.setTimeout(SILENCE_MS, () =>
        request.destroy(Object.assign(new Error("silence"), { code: "ETIMEDOUT" })),
      );
      request.on("error", (error) => {
        stale.reused = request.reusedSocket;
        reject(error);
      });
      request.end(body);
    });
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

function baseUrl(url: string): URL {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (parsed?.protocol !== "http:" && parsed?.protocol !== "https:") {
    throw new TributaryError("TRB-CLI-USAGE", "--url: expected a base URL such as http://127.0.0.1:8080");
  }
  return parsed;
}

function reasonOf(code: string | undefined): string {
  if (code === "ECONNREFUSED") return "nothing listens there";
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") return "the host is not known";
  if (code === "ETIMEDOUT") return "no answer in time";
  if (code === "ECONNRESET" || code === "EPIPE") return "the connection was cut";
  return `no connection (${code ?? "unknown reason"})`;
}
