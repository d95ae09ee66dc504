import type { FastifyBaseLogger, FastifyInstance } from "fastify";
import type { Registry } from "prom-client";
import { Admission } from "../base/admission.js";
import type { Code } from "../base/codes.js";
import type { Config } from "../base/config.js";
import { TributaryError } from "../base/errors.js";
import { errorResponses } from "../base/http.js";
import { grantOf, requireRole, TOKEN_CODES } from "../tenancy/http-auth.js";
import type { TokenVerifier } from "../tenancy/tokens.js";
import { Asked, JSON_TYPE, tenantOf } from "./asked.js";
import { type Catalog, visibleColumns } from "./catalog.js";
import { QueryMetrics } from "./metrics.js";
import { QueryService } from "./query-service.js";

export interface QueryOptions {
  readonly catalog: Catalog;
  readonly verifier: TokenVerifier;
  readonly config: Pick<Config, "query">;
  readonly metrics: Registry;
  readonly log: FastifyBaseLogger;
}

/** Adds POST /v1/query and GET /v1/tables. `close` ends the workers; queries under way fail. */
export async function registerQuery(
  app: FastifyInstance,
  options: QueryOptions,
): Promise<{ close(): Promise<void> }> {
  const service = new QueryService(options.catalog, options.config.query);
  const metrics = new QueryMetrics(options.metrics, service.pool);
  const held = new Admission(options.config.query.maxHeldBytes, () => new TributaryError("TRB-QUERY-BUSY"));
  const onRequest = requireRole(options.verifier, "analyst");
  // SQL, its parameters, and JSON's escapes of both.
  const maxBodyBytes = 4 * options.config.query.maxSqlBytes + 1024 * 1024;
  // The schemas are for readers of the documentation; zod checks bodies, so that messages are ours.
  const validatorCompiler = () => () => true;
  await app.register(async (scope) => {
    // Bodies are handed over unread: what has arrived of them counts.
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser(JSON_TYPE, (_request, _payload, done) => done(null));
    scope.post("/v1/query", { schema: querySchema, validatorCompiler, onRequest }, async (request, reply) => {
      const started = performance.now();
      let outcome: Code | "ok" = "ok";
      const asked = new Asked(request, reply);
      try {
        const reservation = held.enter(grantOf(request).tenantsShare, asked.giveUp);
        asked.reservation = reservation;
        const answer = await asked.answer(service, await asked.body(maxBodyBytes));
        metrics.rows.inc(answer.rowCount);
      } catch (error) {
        outcome = error instanceof TributaryError ? error.code : "TRB-INTERNAL";
        throw error;
      } finally {
        metrics.answers.inc({ code: outcome });
        metrics.seconds.observe((performance.now() - started) / 1000);
        asked.end();
      }
      return reply;
    });
    scope.get("/v1/tables", { schema: tablesSchema, validatorCompiler, onRequest }, async (request) => {
      const { tenant } = request.query as Record<string, unknown>;
      return { tables: await describeTables(options.catalog, tenantOf(grantOf(request), tenant)) };
    });
  });
  return { close: () => service.close() };
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
const authCodes = [...TOKEN_CODES, "TRB-AUTH-TENANT"] as const;
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
      "TRB-REQ-UNREADABLE",
      "TRB-REQ-TOO-SLOW",
      "TRB-REQ-TOO-LARGE",
      "TRB-REQ-CONTENT-TYPE",
      "TRB-REQ-ENCODING",
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
