import type { FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import Negotiator from "negotiator";
import type { Registry } from "prom-client";
import { z } from "zod";
import type { Code } from "../base/codes.js";
import type { Config } from "../base/config.js";
import { TributaryError } from "../base/errors.js";
import { errorResponses } from "../base/http.js";
import { isTenantId } from "../contracts/envelope.js";
import type { Grant } from "../tenancy/grant.js";
import { grantOf, requireRole } from "../tenancy/http-auth.js";
import type { TokenVerifier } from "../tenancy/tokens.js";
import { type Catalog, visibleColumns } from "./catalog.js";
import { QueryMetrics } from "./metrics.js";
import type { AnswerFormat } from "./protocol.js";
import { type QueryAnswer, QueryService } from "./query-service.js";

export interface QueryOptions {
  readonly catalog: Catalog;
  readonly verifier: TokenVerifier;
  readonly config: Pick<Config, "query">;
  readonly metrics: Registry;
  readonly log: FastifyBaseLogger;
}

const MEDIA_TYPES: Readonly<Record<AnswerFormat, string>> = {
  json: "application/json; charset=utf-8",
  csv: "text/csv; charset=utf-8; header=present",
  ndjson: "application/x-ndjson; charset=utf-8",
};

const scalar = z.union([z.null(), z.boolean(), z.number(), z.string()]);
const isOneKind = (items: readonly unknown[]) =>
  new Set(items.filter((item) => item !== null).map((item) => typeof item)).size < 2;
const parameter = z.union([scalar, z.array(scalar).refine(isOneKind)]);
const bodySchema = z.strictObject({
  sql: z.string(),
  params: z.union([z.array(parameter), z.record(z.string(), parameter)]).optional(),
  tenant: z.string().optional(),
});

/** Adds POST /v1/query and GET /v1/tables. `close` ends the workers; queries under way fail. */
export async function registerQuery(
  app: FastifyInstance,
  options: QueryOptions,
): Promise<{ close(): Promise<void> }> {
  const service = new QueryService(options.catalog, options.config.query);
  const metrics = new QueryMetrics(options.metrics, service.pool);
  const onRequest = requireRole(options.verifier, "analyst");
  // The schemas are for readers of the documentation; zod checks bodies, so that messages are ours.
  const validatorCompiler = () => () => true;
  await app.register(async (scope) => {
    scope.post(
      "/v1/query",
      {
        schema: querySchema,
        validatorCompiler,
        onRequest,
        // SQL, its parameters, and JSON's escapes of both.
        bodyLimit: 4 * options.config.query.maxSqlBytes + 1024 * 1024,
      },
      async (request, reply) => {
        const started = performance.now();
        let outcome: Code | "ok" = "ok";
        try {
          await answerQuery(service, request, reply, metrics);
        } catch (error) {
          outcome = error instanceof TributaryError ? error.code : "TRB-INTERNAL";
          throw error;
        } finally {
          metrics.answers.inc({ code: outcome });
          metrics.seconds.observe((performance.now() - started) / 1000);
        }
        return reply;
      },
    );
    scope.get("/v1/tables", { schema: tablesSchema, validatorCompiler, onRequest }, async (request) => {
      const { tenant } = request.query as Record<string, unknown>;
      return { tables: await describeTables(options.catalog, tenantOf(grantOf(request), tenant)) };
    });
  });
  return { close: () => service.close() };
}

async function answerQuery(
  service: QueryService,
  request: FastifyRequest,
  reply: FastifyReply,
  metrics: QueryMetrics,
): Promise<void> {
  const grant = grantOf(request);
  const body = readBody(request.body);
  const tenant = tenantOf(grant, body.tenant);
  const format = formatOf(request.headers.accept);
  const numbers = numbersOf(request.query);
  const leaving = new AbortController();
  const onClose = () => {
    if (!reply.raw.writableFinished) leaving.abort();
  };
  reply.raw.once("close", onClose);
  try {
    const { sql, params } = body;
    const answer = await service.run(
      { tenant, sql, format, numbers, ...(params === undefined ? {} : { params }) },
      leaving.signal,
    );
    metrics.rows.inc(answer.rowCount);
    reply.type(MEDIA_TYPES[format]).header("cache-control", "no-store");
    if (format !== "json") {
      // Formats without room for it beside the rows.
      reply.header("tributary-snapshot", answer.snapshot).header("tributary-row-count", answer.rowCount);
    }
    reply.send(format === "json" ? jsonBody(answer) : answer.rows.join(""));
  } finally {
    reply.raw.off("close", onClose);
  }
}

function jsonBody({ columns, rows, rowCount, elapsedMs, snapshot }: QueryAnswer): string {
  const end = JSON.stringify({ rowCount, elapsedMs, snapshot }).slice(1);
  return `{"columns":${JSON.stringify(columns)},"rows":[${rows.join("")}],${end}`;
}

function readBody(body: unknown): z.infer<typeof bodySchema> {
  const parsed = bodySchema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const unknown = issue?.code === "unrecognized_keys" ? issue.keys[0] : undefined;
  const field = unknown?.slice(0, 64) ?? (issue?.path.join(".") || "body");
  const expected =
    issue?.path[0] === "params"
      ? "expected null, true or false, numbers, texts, or lists of one kind of these"
      : "expected { sql: text, params?: values, tenant?: text }";
  throw new TributaryError("TRB-REQ-INVALID", `${field}: ${expected}`);
}

/**
 * The one tenant a request is about. Whether another tenant exists is never told: what the token does not grant and
 * what cannot be a tenant are answered alike.
 */
function tenantOf(grant: Grant, asked: unknown): string {
  // Row predicates of a scope are not enforced yet, so that such a token gets no rows at all.
  if (grant.scope !== undefined) {
    throw new TributaryError(
      "TRB-AUTH-ROLE",
      "expected a token without a scope: scopes cannot be enforced yet",
    );
  }
  if (asked === undefined) {
    const [only, ...others] = grant.tenants === "*" ? [] : grant.tenants;
    if (only === undefined || others.length > 0) throw new TributaryError("TRB-QUERY-TENANT");
    return only;
  }
  if (typeof asked !== "string" || !isTenantId(asked) || !grant.allowsTenant(asked)) {
    throw new TributaryError("TRB-AUTH-TENANT");
  }
  return asked;
}

const FORMATS = Object.fromEntries(
  Object.entries(MEDIA_TYPES).map(([format, type]) => [type.split(";")[0]!, format as AnswerFormat]),
);

/** What the Accept header likes best of the media types we write; none asked for means JSON. */
function formatOf(accept: string | undefined): AnswerFormat {
  if (accept === undefined || accept.trim() === "") return "json";
  const [best] = new Negotiator({ headers: { accept } }).mediaTypes(Object.keys(FORMATS));
  const format = best === undefined ? undefined : FORMATS[best];
  if (format !== undefined) return format;
  throw new TributaryError(
    "TRB-REQ-CONTENT-TYPE",
    "accept: expected application/json, text/csv or application/x-ndjson",
  );
}

function numbersOf(query: unknown): "exact" | "js" {
  const { numbers } = query as Record<string, unknown>;
  if (numbers === undefined) return "exact";
  if (numbers === "js") return "js";
  throw new TributaryError("TRB-REQ-INVALID", 'numbers: expected "js" or nothing');
}

async function describeTables(catalog: Catalog, tenant: string) {
  const [tables, states] = await Promise.all([catalog.tables(), catalog.states()]);
  const described = tables.map(async (table) => {
    const state = states.get(`${table.domain}.${table.model}`);
    return {
      schema: table.domain,
      name: table.model,
      description: table.description ?? null,
      // What has left the stream without being in the table is not found there.
      freshnessMs: state === undefined ? await table.freshness(tenant) : null,
      ...(state === undefined ? { state: "ok" } : state),
      columns: visibleColumns(table).map(({ name, type, description }) => ({
        name,
        type,
        description: description ?? null,
      })),
    };
  });
  return Promise.all(described);
}

// --- documentation ---------------------------------------------------------------------------------------

const text = { type: "string" } as const;
const security = [{ token: [] }];
const authCodes = [
  "TRB-AUTH-MISSING",
  "TRB-AUTH-INVALID",
  "TRB-AUTH-EXPIRED",
  "TRB-AUTH-ROLE",
  "TRB-AUTH-TENANT",
] as const;
const column = { type: "object", properties: { name: text, type: text } };
const table = {
  type: "object",
  properties: {
    schema: text,
    name: text,
    description: { type: ["string", "null"] },
    freshnessMs: {
      type: ["number", "null"],
      description:
        "For how long the tenant's oldest accepted event has waited to be in the table; 0 when none waits, null when not known.",
    },
    state: { ...text, enum: ["ok", "quarantined", "catching-up"] },
    since: { ...text, description: "ISO 8601; when it came to a state that is not ok." },
    code: { ...text, description: "Why, as a code of docs/errors.md." },
    remedy: text,
    columns: {
      type: "array",
      items: {
        type: "object",
        properties: { name: text, type: text, description: { type: ["string", "null"] } },
      },
    },
  },
};
const tenantQuestion = {
  ...text,
  description: "Needed unless the token grants exactly one tenant.",
};

const querySchema = {
  tags: ["query"],
  summary: "One SELECT over one tenant's tables",
  description: "Which SQL is allowed, and how values are written, is told in docs/sql.md.",
  security,
  querystring: {
    type: "object",
    properties: {
      numbers: {
        ...text,
        enum: ["js"],
        description: "js: 64-bit integers and decimals as JSON numbers, though they may lose digits.",
      },
    },
  },
  body: {
    type: "object",
    required: ["sql"],
    properties: {
      sql: { ...text, example: "select count(*) from issues" },
      params: {
        description:
          "Values for $1, $2, … or ?, or by name for $name: null, boolean, number, text, or a list of these.",
        oneOf: [
          { type: "array", items: {} },
          { type: "object", additionalProperties: {} },
        ],
      },
      tenant: tenantQuestion,
    },
  },
  response: {
    200: {
      description: "The rows. CSV and NDJSON carry the snapshot in the header tributary-snapshot.",
      content: {
        "application/json": {
          schema: {
            type: "object",
            properties: {
              columns: { type: "array", items: column },
              rows: { type: "array", items: { type: "array", items: {} } },
              rowCount: { type: "integer" },
              elapsedMs: { type: "number" },
              snapshot: text,
            },
          },
        },
        "text/csv": { schema: text },
        "application/x-ndjson": { schema: text },
      },
    },
    ...errorResponses(
      "TRB-REQ-INVALID",
      "TRB-REQ-CONTENT-TYPE",
      ...authCodes,
      "TRB-QUERY-SYNTAX",
      "TRB-QUERY-STATEMENT",
      "TRB-QUERY-TABLE",
      "TRB-QUERY-FUNCTION",
      "TRB-QUERY-CONSTRUCT",
      "TRB-QUERY-COLUMN",
      "TRB-QUERY-BIND",
      "TRB-QUERY-RUNTIME",
      "TRB-QUERY-TOO-LONG",
      "TRB-QUERY-TIMEOUT",
      "TRB-QUERY-MEMORY",
      "TRB-QUERY-ROWS",
      "TRB-QUERY-TENANT",
      "TRB-QUERY-BUSY",
      "TRB-QUERY-UNREADABLE",
    ),
  },
} as const;

const tablesSchema = {
  tags: ["query"],
  summary: "The tables a tenant can query",
  security,
  querystring: { type: "object", properties: { tenant: tenantQuestion } },
  response: {
    200: {
      description: "Tables with their columns, types and descriptions.",
      type: "object",
      properties: { tables: { type: "array", items: table } },
    },
    ...errorResponses("TRB-QUERY-TENANT", ...authCodes),
  },
} as const;
