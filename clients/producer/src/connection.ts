import http from "node:http";
import https from "node:https";

export interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: Buffer;
  /** It was sent before, over a connection that was cut then: it may have been carried out, whatever this answer says. */
  readonly sentTwice: boolean;
}

export interface RequestOptions {
  /** A server that says and takes nothing for so many milliseconds is taken for dead. */
  readonly silenceMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** Many times what a bus says of as many events as a request may hold. Longer answers are somebody else's. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;

/** Requests to one server over connections that are kept. */
export class Connection {
  private readonly base: URL;
  private readonly agent: http.Agent;

  /** `base`: an http or https URL; its path stands before those of requests. */
  constructor(base: URL, connections: number) {
    this.base = base;
    const keep = { keepAlive: true, maxSockets: connections };
    this.agent = base.protocol === "https:" ? new https.Agent(keep) : new http.Agent(keep);
  }

  /**
   * Any answer is an answer, whatever its status. Only for requests that may be repeated: one that meets a connection
   * which the server closes at that moment is sent again. Errors: those of node:http, with its codes, the first one
   * where it was sent again; ETIMEDOUT; EMSGSIZE; the signal's reason.
   */
  post(
    path: string,
    headers: http.OutgoingHttpHeaders,
    body: Uint8Array,
    options: RequestOptions,
  ): Promise<Answer> {
    return this.send("POST", this.at(path), headers, body, options);
  }

  /** The same as a PUT, to a path of the server or to another server's URL. Errors: TypeError for neither. */
  async put(
    to: string,
    headers: http.OutgoingHttpHeaders,
    body: Uint8Array,
    options: RequestOptions,
  ): Promise<Answer> {
    const url = URL.canParse(to) ? new URL(to) : this.at(to);
    return this.send("PUT", url, headers, body, options);
  }

  private at(path: string): URL {
    // Never resolved: what begins with two slashes would name another host, and be sent the token.
    return new URL(this.base.origin + this.base.pathname.replace(/\/+$/, "") + path);
  }

  private async send(
    method: string,
    url: URL,
    headers: http.OutgoingHttpHeaders,
    body: Uint8Array,
    options: RequestOptions,
  ): Promise<Answer> {
    const whole = { ...headers, "content-length": body.length };
    for (let cut: unknown; ; ) {
      const stale = { reused: false };
      try {
        const answer = await this.request(method, url, whole, body, options, stale);
        return { ...answer, sentTwice: cut !== undefined };
      } catch (error) {
        const code = errno(error);
        if (!stale.reused || (code !== "ECONNRESET" && code !== "EPIPE")) throw cut ?? error;
        cut ??= error;
      }
    }
  }

  close(): void {
    this.agent.destroy();
  }

  private request(
    method: string,
    url: URL,
    headers: http.OutgoingHttpHeaders,
    body: Uint8Array,
    { silenceMs, signal }: RequestOptions,
    stale: { reused: boolean },
  ): Promise<Omit<Answer, "sentTwice">> {
    const { request: start } = url.protocol === "https:" ? https : http;
    // Another server's connections are Node's own business.
    const own = url.origin === this.base.origin ? { agent: this.agent } : {};
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const request = start(url, { method, headers, ...own }, (response) => {
        const chunks: Buffer[] = [];
        let bytes = 0;
        response.on("data", (chunk: Buffer) => {
          chunks.push(chunk);
          bytes += chunk.length;
          if (bytes > MAX_ANSWER_BYTES)
            request.destroy(Object.assign(new Error("too long an answer"), { code: "EMSGSIZE" }));
        });
        response.on("error", fail);
        response.on("end", () => {
          done();
          const { statusCode: status = 0, headers } = response;
          resolve({ status, headers, body: Buffer.concat(chunks) });
        });
      });
      request.setTimeout(silenceMs, () =>
        request.destroy(Object.assign(new Error("no answer in time"), { code: "ETIMEDOUT" })),
      );
      const abort = () => request.destroy(signal?.reason as Error);
      const done = () => signal?.removeEventListener("abort", abort);
      const fail = (error: unknown) => {
        done();
        reject(error);
      };
      signal?.addEventListener("abort", abort, { once: true });
      request.on("error", (error) => {
        stale.reused = request.reusedSocket;
        fail(error);
      });
      request.end(body);
    });
  }
}

export const errno = (error: unknown): string | undefined =>
  error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;

/** Why there was no answer, in words that hold no address. */
export function reasonOf(error: unknown): string {
  const code = errno(error);
  if (code === "ECONNREFUSED") return "nothing listens there";
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") return "the host is not known";
  if (code === "ETIMEDOUT") return "no answer in time";
  if (code === "EMSGSIZE") return "the answer does not end";
  if (code === "ECONNRESET" || code === "EPIPE") return "the connection was cut";
  return `no connection (${code ?? "unknown reason"})`;
}
