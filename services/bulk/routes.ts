import type { FastifyInstance, FastifyRequest } from "fastify";
import Negotiator from "negotiator";
import { z } from "zod";
import { TributaryError } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import { grantOf, requireRole } from "../tenancy/http-auth.js";
import type { TokenVerifier } from "../tenancy/tokens.js";
import type { Checking, JobDesk, Planning } from "./job-desk.js";
import { bootstrapRequest, jobJson, replayRequest, verifyRequest } from "./jobs/job.js";
import { lineOf } from "./jobs/mendable.js";
import { rejectJson } from "./jobs/rejects.js";
import { PAGE_POLICY, reportPage } from "./report-page.js";
import { reportView } from "./report-view.js";
import {
  confirmSchema,
  ID,
  listSchema,
  rejectsSchema,
  replaySchema,
  reportSchema,
  showSchema,
  startSchema,
  TYPE,
  verifySchema,
  watermarkSchema,
  wishSchema,
} from "./routes-docs.js";
import { watermarkOf } from "./watermark.js";

export interface BulkOptions {
  readonly desk: JobDesk;
  readonly verifier: TokenVerifier;
  /** What sources are checked against, for as long as `use` runs: descriptors as they are now. */
  readonly checking: Checking;
  /** Lends the stream of an entity type. */
  readonly reading: <T>(
    entityType: string,
    use: (reader: Pick<ChangeStreamReader, "name" | "head">) => Promise<T>,
  ) => Promise<T>;
  readonly planning: Planning;
}

const MAX_BODY_BYTES = 1024 * 1024;
const WISHES = { pause: "pause", resume: "run", cancel: "cancel" } as const;

/** Adds /v1/bootstraps, /v1/replays and /v1/watermarks: what operators ask for over HTTP. */
export async function registerBulk(app: FastifyInstance, options: BulkOptions): Promise<void> {
  const { desk, checking, planning } = options;
  const ofRole = requireRole(options.verifier, "operator");
  // A reader's process is costly, and operators are few.
  const checks = new Turns();
  const inTurn: Checking = (use) => checks.run(() => checking(use));
  // Who looks at what is in the lake waits for nobody's source.
  const looks = new Turns();
  const lookInTurn: Checking = (use) => looks.run(() => checking(use));
  const planInTurn: Planning = (use) => looks.run(() => planning(use));
  const onRequest: typeof ofRole = async function (this: FastifyInstance, request, reply) {
    await ofRole.call(this, request, reply);
    // Jobs bring rows of any tenant, and what is told of them names others.
    if (grantOf(request).tenants !== "*")
      throw new TributaryError("TRB-AUTH-TENANT", "expected an operator's token for all tenants");
  };
  // The schemas are for readers of the documentation; zod checks bodies, so that messages are ours.
  const validatorCompiler = () => () => true;
  await app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser(
      "application/json",
      { parseAs: "string", bodyLimit: MAX_BODY_BYTES },
      (_, body, done) => done(null, body),
    );
    scope.post(
      "/v1/bootstraps",
      { schema: startSchema, validatorCompiler, onRequest },
      async (request, reply) => {
        const asked = bodyOf(request.body, bootstrapRequest);
        if (isDryRun(request)) {
          const check = await inTurn((parts) => desk.dryRun(parts, asked));
          return { dryRun: true, ...check };
        }
        const by = grantOf(request).subject;
        const { job, wasThere } = await desk.bootstrap(inTurn, asked, by);
        return reply.code(wasThere ? 200 : 201).send(jobJson(job));
      },
    );
    scope.get("/v1/bootstraps", { schema: listSchema, validatorCompiler, onRequest }, async () => {
      const jobs = await desk.jobs.list();
      return { jobs: jobs.map(jobJson) };
    });
    scope.get(
      `/v1/bootstraps/:${ID}`,
      { schema: showSchema, validatorCompiler, onRequest },
      async (request) => jobJson(await desk.jobs.get(idOf(request))),
    );
    for (const [word, wish] of Object.entries(WISHES)) {
      const schema = wishSchema(word as keyof typeof WISHES);
      scope.post(`/v1/bootstraps/:${ID}/${word}`, { schema, validatorCompiler, onRequest }, async (request) =>
        jobJson(await desk.wish(idOf(request), wish, grantOf(request).subject)),
      );
    }
    scope.post(
      `/v1/bootstraps/:${ID}/confirm`,
      { schema: confirmSchema, validatorCompiler, onRequest },
      async (request) => {
        const deletes = bodyOf(request.body, toDelete);
        return jobJson(await desk.confirm(idOf(request), deletes, grantOf(request).subject));
      },
    );
    scope.post(
      `/v1/bootstraps/:${ID}/verify`,
      { schema: verifySchema, validatorCompiler, onRequest },
      async (request, reply) => {
        const asked = bodyOf(request.body ?? "{}", verifyRequest);
        const { job, wasThere } = await desk.verify(idOf(request), asked, grantOf(request).subject);
        return reply.code(wasThere ? 200 : 201).send(jobJson(job));
      },
    );
    scope.get(
      `/v1/bootstraps/:${ID}/report`,
      { schema: reportSchema, validatorCompiler, onRequest },
      async (request, reply) => {
        const by = grantOf(request).subject;
        const report = await lookInTurn((parts) => desk.report(parts, idOf(request), by));
        if (wantedOf(request, [JSON_TYPE, HTML_TYPE]) === JSON_TYPE) return report;
        return reply
          .type(`${HTML_TYPE}; charset=utf-8`)
          .header("content-security-policy", PAGE_POLICY)
          .send(reportPage(reportView(report)));
      },
    );
    scope.get(
      `/v1/bootstraps/:${ID}/rejects`,
      { schema: rejectsSchema, validatorCompiler, onRequest },
      async (request, reply) => {
        const id = idOf(request);
        const page = pageOf(request);
        const { rejects, next } = await lookInTurn((parts) =>
          desk.rejects(parts, id, page, grantOf(request).subject),
        );
        if (next !== undefined) {
          const query = new URLSearchParams({ limit: String(page.limit), after: next });
          reply.header("link", `</v1/bootstraps/${id}/rejects?${query}>; rel="next"`);
        }
        if (wantedOf(request, [JSON_TYPE, NDJSON_TYPE]) === NDJSON_TYPE)
          return reply.type(NDJSON_TYPE).send(rejects.map(lineOf).join(""));
        return { id, rejects: rejects.map(rejectJson), next: next ?? null };
      },
    );
    scope.get(
      `/v1/watermarks/:${TYPE}`,
      { schema: watermarkSchema, validatorCompiler, onRequest },
      async (request) => {
        const entityType = (request.params as Record<typeof TYPE, string>)[TYPE];
        return options.reading(entityType, (reader) =>
          lookInTurn((parts) => watermarkOf({ ...parts, store: desk.store }, entityType, reader)),
        );
      },
    );
    scope.post(
      "/v1/replays",
      { schema: replaySchema, validatorCompiler, onRequest },
      async (request, reply) => {
        const asked = bodyOf(request.body, replayRequest);
        if (isDryRun(request)) {
          const plan = await planInTurn((parts) => desk.replayPlan(parts, asked));
          return { dryRun: true, plan };
        }
        const { job, wasThere } = await desk.replay(planInTurn, asked, grantOf(request).subject);
        return reply.code(wasThere ? 200 : 201).send(jobJson(job));
      },
    );
  });
}

const JSON_TYPE = "application/json";
const HTML_TYPE = "text/html";
const NDJSON_TYPE = "application/x-ndjson";

/** The first where nothing else is wanted. */
function wantedOf({ headers: { accept } }: FastifyRequest, types: readonly [string, string]): string {
  if (accept === undefined) return types[0];
  return new Negotiator({ headers: { accept } }).mediaType([...types]) ?? types[0];
}

const idOf = ({ params }: FastifyRequest): string => (params as Record<typeof ID, string>)[ID];

const toDelete = z.strictObject({ count: z.int().min(0), asOf: z.int().min(0) });

const MOST_REJECTS = 1000;
const pageShape = z.strictObject({
  limit: z.coerce.number().int().min(1).max(MOST_REJECTS).default(100),
  after: z.string().max(128).optional(),
});

/** Errors: TRB-REQ-INVALID. */
function pageOf({ query }: FastifyRequest): { readonly limit: number; readonly after?: string } {
  const parsed = pageShape.safeParse(query);
  if (!parsed.success) throw new TributaryError("TRB-REQ-INVALID", wordsOf(parsed.error));
  const { limit, after } = parsed.data;
  return { limit, ...(after === undefined ? {} : { after }) };
}

function isDryRun({ query }: FastifyRequest): boolean {
  const { dryRun = "false" } = query as Record<string, unknown>;
  if (dryRun === "true" || dryRun === "false") return dryRun === "true";
  // What was meant to change nothing must not begin a job.
  throw new TributaryError("TRB-REQ-INVALID", "dryRun: expected true or false");
}

/** Errors: TRB-REQ-UNREADABLE, TRB-REQ-INVALID. */
function bodyOf<T>(body: unknown, shape: z.ZodType<T>): T {
  let value: unknown;
  try {
    value = JSON.parse(String(body));
  } catch {
    throw new TributaryError("TRB-REQ-UNREADABLE", "body: expected JSON");
  }
  const parsed = shape.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new TributaryError("TRB-REQ-INVALID", `body: ${wordsOf(parsed.error)}`);
}

/** What zod found, on one line. */
export const wordsOf = (error: z.ZodError): string =>
  z.prettifyError(error).replace(/\n\s*/g, " ").replace(/^✖ /, "");
