import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import Fastify, {
  type FastifyBaseLogger,
  type FastifyError,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
  type onRequestAsyncHookHandler,
} from "fastify";
import type { Registry } from "prom-client";
import { AnswerPace, type AnswerPaceLimits } from "./answers.js";
import { BodyPace, type Pace } from "./body-pace.js";
import { CODES, type Code } from "./codes.js";
import { TributaryError } from "./errors.js";
import { registerDocs } from "./http-docs.js";
import { packageVersion } from "./paths.js";

export interface ServerOptions {
  readonly log: FastifyBaseLogger;
  readonly metrics: Pick<Registry, "metrics" | "contentType">;
  /** Runs before /metrics is answered; throws what is to be answered instead. */
  readonly guardMetrics: onRequestAsyncHookHandler;
  /** Why requests cannot be served yet or any more; undefined when they can. */
  readonly notReady?: () => string | undefined;
  /** What /readyz tells beside: a server that serves may still have something that is not well. */
  readonly readyDetails?: () => Promise<Readonly<Record<string, unknown>>>;
  readonly limits: Pace & AnswerPaceLimits & { readonly maxConnections: number };
}

/** One HTTP server, which services add their routes to. */
export interface HttpServer {
  readonly app: FastifyInstance;
  /** True from the call of `drain` on. */
  readonly draining: boolean;
  /** Starts to listen; resolves to the base URL, with the port that was found when 0 was asked for. */
  listen(host: string, port: number): Promise<string>;
  /**
   * Refuses new work with TRB-BUS-DRAINING, lets requests in flight end, then closes. Connections that still have not
   * ended after `graceMs` (default 30,000) are cut. Safe to call again.
   */
  drain(graceMs?: number): Promise<void>;
}

/** Seconds a client is asked to wait before it tries again. */
const RETRY_AFTER = "1";
/** Routes that answer also while the server drains. */
const ALWAYS = new Set(["/healthz", "/readyz", "/metrics"]);

/**
 * A server with what all services share: the error body, request ids, /healthz, /readyz, /metrics, /docs and
 * /docs/json, and a graceful end. Bodies are read by the routes that are added.
 */
export async function buildServer(options: ServerOptions): Promise<HttpServer> {
  const app = Fastify({
    loggerInstance: options.log,
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: () => randomUUID(),
    // Idle keep-alive connections must not hold up the end.
    forceCloseConnections: "idle",
    return503OnClosing: false,
    requestTimeout: 300_000,
    http: {
      headersTimeout: 2 * options.limits.bodyGraceMs,
      connectionsCheckingInterval: Math.min(1_000, options.limits.bodyGraceMs / 2),
    },
    frameworkErrors: (error, request, reply) => answerError(error, request, reply),
    clientErrorHandler: answerBrokenHttp,
  }) as FastifyInstance;
  app.server.maxConnections = options.limits.maxConnections;
  const pace = new BodyPace(options.limits);
  const answers = new AnswerPace(options.limits);
  app.addHook("onClose", async () => {
    pace.stop();
    answers.stop();
  });
  let draining: Promise<void> | undefined;
  app.setErrorHandler<FastifyError>((error, request, reply) => answerError(error, request, reply));
  app.setNotFoundHandler((request, reply) => {
    answerError(new TributaryError("TRB-REQ-NOT-FOUND"), request, reply);
  });
  app.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
    // Answers are one token's own; what they hold is never another type than they say.
    reply.header("cache-control", "no-store").header("x-content-type-options", "nosniff");
    pace.watch(request.raw, reply.raw);
    answers.watch(reply.raw, request.raw.socket);
    if (draining && !ALWAYS.has(request.routeOptions.url ?? "")) {
      throw new TributaryError("TRB-BUS-DRAINING");
    }
  });
  // Otherwise a keep-alive connection whose request was in flight would stay open, idle, and hold up the end.
  app.addHook("onSend", async (request, reply) => {
    if (draining) reply.header("connection", "close");
    const closes = reply.getHeader("connection") === "close" || !reply.raw.shouldKeepAlive;
    // Who is too slow would be waited for at its pace.
    if (closes && reply.statusCode !== CODES["TRB-REQ-TOO-SLOW"].status) await bodyOver(request.raw);
  });
  await registerDocs(app, packageVersion);
  app.addSchema(errorBodySchema);
  addSharedRoutes(app, options, () => draining !== undefined);
  return {
    app,
    get draining() {
      return draining !== undefined;
    },
    listen: (host, port) => app.listen({ host, port }),
    drain: (graceMs = 30_000) => {
      draining ??= closeGracefully(app, graceMs);
      return draining;
    },
  };
}

/**
 * Throws away what is still to come of a body. A connection that is closed while it comes is reset, and its sender never
 * reads the answer (RFC 9112, section 9.6).
 */
async function bodyOver(request: IncomingMessage): Promise<void> {
  if (request.complete || request.readableEnded || request.destroyed) return;
  await new Promise<void>((resolve) => {
    // An error is what a sender that is too slow meets.
    for (const event of ["end", "close", "error"]) request.once(event, () => resolve());
    request.resume();
  });
}

/** Closing stops to accept connections and waits for those that are open; so they are helped to end. */
async function closeGracefully(app: FastifyInstance, graceMs: number): Promise<void> {
  // A connection may turn idle only later, when the rest of a refused body has been thrown away.
  const sweep = setInterval(() => app.server.closeIdleConnections(), 50);
  const limit = setTimeout(() => app.server.closeAllConnections(), graceMs);
  try {
    await app.close();
  } finally {
    clearInterval(sweep);
    clearTimeout(limit);
  }
}

/** The body of every failing answer; routes refer to it as { $ref: "ErrorBody#" }. */
const errorBodySchema = {
  $id: "ErrorBody",
  type: "object",
  required: ["error"],
  properties: {
    error: {
      type: "object",
      required: ["code", "message"],
      properties: {
        code: { type: "string", enum: Object.keys(CODES), description: "What happened, from a closed list." },
        message: { type: "string", description: "The field at fault and what was expected." },
        details: { type: "object", additionalProperties: true },
      },
    },
  },
} as const;

/** Response schemas for the failures a route may answer with, by status, naming their codes. */
export function errorResponses(...codes: Code[]): Record<number, unknown> {
  const byStatus = new Map<number, Code[]>();
  for (const code of codes)
    byStatus.set(CODES[code].status, [...(byStatus.get(CODES[code].status) ?? []), code]);
  return Object.fromEntries(
    [...byStatus].map(([status, list]) => [
      status,
      {
        description: list.map((code) => `${code}: ${CODES[code].summary}`).join("; "),
        content: { "application/json": { schema: { $ref: "ErrorBody#" } } },
      },
    ]),
  );
}

function addSharedRoutes(app: FastifyInstance, options: ServerOptions, isDraining: () => boolean): void {
  const tags = ["service"];
  const text = { type: "string" };
  const stateSchema = { description: "It is.", type: "object", properties: { status: text, reason: text } };
  const readySchema = { ...stateSchema, additionalProperties: true };
  app.get(
    "/healthz",
    { schema: { tags, summary: "Whether the process lives", response: { 200: stateSchema } } },
    async () => ({ status: "ok" }),
  );
  app.get(
    "/readyz",
    {
      schema: {
        tags,
        summary: "Whether requests can be served",
        response: { 200: readySchema, 503: { ...readySchema, description: "Not now." } },
      },
    },
    async (_request, reply) => {
      const reason = isDraining() ? "draining" : options.notReady?.();
      // Whether requests can be served does not depend on what else can be told.
      const details = await options.readyDetails?.().catch(() => ({}));
      return reason === undefined
        ? { status: "ready", ...details }
        : reply.code(503).send({ status: "not ready", reason, ...details });
    },
  );
  app.get(
    "/metrics",
    {
      onRequest: options.guardMetrics,
      schema: {
        tags,
        summary: "Prometheus metrics",
        security: [{ token: [] }],
        response: {
          200: { description: "Text exposition format.", content: { "text/plain": { schema: text } } },
          ...errorResponses(
            "TRB-AUTH-MISSING",
            "TRB-AUTH-INVALID",
            "TRB-AUTH-EXPIRED",
            "TRB-AUTH-KEYS",
            "TRB-AUTH-ROLE",
          ),
        },
      },
    },
    async (_request, reply) => {
      const exposition = await options.metrics.metrics();
      return reply.type(options.metrics.contentType).send(exposition);
    },
  );
}

function answerError(error: Error, request: FastifyRequest, reply: FastifyReply): void {
  const known = toTributaryError(error, request);
  if (known.status >= 500) {
    request.log[known.status === 500 ? "error" : "warn"]({ err: known, reqId: request.id }, "request failed");
  }
  if (known.status === 401) reply.header("www-authenticate", "Bearer");
  if (known.retryable) reply.header("retry-after", RETRY_AFTER);
  // What it still has to say would be read at its pace.
  if (known.code === "TRB-REQ-TOO-SLOW") reply.header("connection", "close");
  reply.code(known.status).type("application/json; charset=utf-8").send(JSON.stringify(known.toBody()));
}

/** Failures of Fastify and of streams, by the codes they have. */
const FRAMEWORK_CODES: Readonly<Record<string, Code>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: "TRB-REQ-CONTENT-TYPE",
  FST_ERR_CTP_BODY_TOO_LARGE: "TRB-REQ-TOO-LARGE",
  FST_ERR_CTP_EMPTY_JSON_BODY: "TRB-REQ-UNREADABLE",
  FST_ERR_CTP_INVALID_JSON_BODY: "TRB-REQ-UNREADABLE",
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: "TRB-REQ-UNREADABLE",
  // Who asked has gone, or was cut, before the first byte of a long answer: no fault of ours, and nobody hears of it.
  ERR_STREAM_PREMATURE_CLOSE: "TRB-REQ-UNREADABLE",
  FST_ERR_BAD_URL: "TRB-REQ-NOT-FOUND",
  FST_ERR_ROUTE_REWRITE_NOT_STR: "TRB-REQ-NOT-FOUND",
};

function toTributaryError(error: Error, request: FastifyRequest): TributaryError {
  if (error instanceof TributaryError) return error;
  const { code, validation, validationContext } = error as FastifyError;
  if (validation) {
    const first = validation[0];
    const field = `${validationContext ?? "body"}${first?.instancePath?.replaceAll("/", ".") ?? ""}`;
    return new TributaryError("TRB-REQ-INVALID", `${field}: ${first?.message ?? "wrong shape"}`);
  }
  const ours = code === undefined ? undefined : FRAMEWORK_CODES[code];
  if (ours !== undefined) return new TributaryError(ours, undefined, { cause: error });
  return new TributaryError("TRB-INTERNAL", undefined, { cause: error, details: { requestId: request.id } });
}

/** What is not even HTTP gets the error body too, as far as its connection still takes one. */
function answerBrokenHttp(error: Error & { code?: string }, socket: Duplex): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const known =
    error.code === "ERR_HTTP_REQUEST_TIMEOUT"
      ? new TributaryError("TRB-REQ-TOO-SLOW")
      : new TributaryError(
          error.code === "HPE_HEADER_OVERFLOW" ? "TRB-REQ-TOO-LARGE" : "TRB-REQ-UNREADABLE",
          "request: not readable as HTTP",
        );
  const body = JSON.stringify(known.toBody());
  socket.end(
    `HTTP/1.1 ${known.status} Refused\r\ncontent-type: application/json\r\nconnection: close\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
