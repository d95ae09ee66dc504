import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { TributaryError } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import { grantOf, requireRole } from "../tenancy/http-auth.js";
import type { TokenVerifier } from "../tenancy/tokens.js";
import type { Checking, JobDesk } from "./job-desk.js";
import { type BootstrapRequest, bootstrapRequest, type Job, jobJson } from "./jobs/job.js";
import { ID, listSchema, showSchema, startSchema, wishSchema } from "./routes-docs.js";

export interface BulkOptions {
  readonly desk: JobDesk;
  readonly verifier: TokenVerifier;
  /** What sources are checked against, for as long as `use` runs: descriptors as they are now. */
  readonly checking: Checking;
}

const MAX_BODY_BYTES = 1024 * 1024;
const WISHES = { pause: "pause", resume: "run", cancel: "cancel" } as const;

/** Adds /v1/bootstraps: what operators ask for over HTTP. */
export async function registerBulk(app: FastifyInstance, options: BulkOptions): Promise<void> {
  const { desk, checking } = options;
  const ofRole = requireRole(options.verifier, "operator");
  // A reader's process is costly, and operators are few.
  const checks = new Turns();
  const inTurn: Checking = (use) => checks.run(() => checking(use));
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
        const asked = requestOf(request.body);
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
      return { jobs: jobs.filter(isBootstrap).map(jobJson) };
    });
    scope.get(
      `/v1/bootstraps/:${ID}`,
      { schema: showSchema, validatorCompiler, onRequest },
      async (request) => jobJson(await found(desk, request)),
    );
    for (const [word, wish] of Object.entries(WISHES)) {
      const schema = wishSchema(word as keyof typeof WISHES);
      scope.post(
        `/v1/bootstraps/:${ID}/${word}`,
        { schema, validatorCompiler, onRequest },
        async (request) => {
          const { order } = await found(desk, request);
          return jobJson(await desk.wish(order.id, wish, grantOf(request).subject));
        },
      );
    }
  });
}

const isBootstrap = ({ order }: Job): boolean => order.kind === "bootstrap";

/** Errors: TRB-JOB-UNKNOWN, also for jobs of other kinds. */
async function found({ jobs }: JobDesk, request: FastifyRequest): Promise<Job> {
  const job = await jobs.get((request.params as Record<typeof ID, string>)[ID]);
  if (!isBootstrap(job)) throw new TributaryError("TRB-JOB-UNKNOWN");
  return job;
}

function isDryRun({ query }: FastifyRequest): boolean {
  const { dryRun = "false" } = query as Record<string, unknown>;
  if (dryRun === "true" || dryRun === "false") return dryRun === "true";
  // What was meant to change nothing must not begin a job.
  throw new TributaryError("TRB-REQ-INVALID", "dryRun: expected true or false");
}

/** Errors: TRB-REQ-UNREADABLE, TRB-REQ-INVALID. */
function requestOf(body: unknown): BootstrapRequest {
  let value: unknown;
  try {
    value = JSON.parse(String(body));
  } catch {
    throw new TributaryError("TRB-REQ-UNREADABLE", "body: expected JSON");
  }
  const parsed = bootstrapRequest.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new TributaryError("TRB-REQ-INVALID", `body: ${wordsOf(parsed.error)}`);
}

/** What zod found, on one line. */
export const wordsOf = (error: z.ZodError): string =>
  z.prettifyError(error).replace(/\n\s*/g, " ").replace(/^✖ /, "");
