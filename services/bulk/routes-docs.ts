import { errorResponses } from "../base/http.js";
import { FORMATS } from "../sources/formats.js";
import { TOKEN_CODES } from "../tenancy/http-auth.js";
import { PHASES } from "./jobs/job.js";

/** What /docs says of /v1/bootstraps. */

/** The parameters of paths. */
export const ID = "id";
export const TYPE = "entityType";

const tags = ["bulk"];
const security = [{ token: [] }];
const text = (description: string) => ({ type: "string", description }) as const;
const count = (description: string) => ({ type: "integer", description }) as const;
const codes = [...TOKEN_CODES, "TRB-AUTH-TENANT", "TRB-STORE-FAILED"] as const;
/** What a body may be refused with. */
const bodyCodes = [
  "TRB-REQ-INVALID",
  "TRB-REQ-UNREADABLE",
  "TRB-REQ-TOO-SLOW",
  "TRB-REQ-TOO-LARGE",
  "TRB-REQ-CONTENT-TYPE",
] as const;

const part = {
  description:
    'A column (or a field of one, `after.key`), `{"constant": 0}`, or `{"path": "tenant=([^/]+)/"}`: an expression for the path of the file.',
};
const mapping = {
  type: "object",
  description: "How rows become events; whole events need none.",
  required: ["tenant", "entityId", "version"],
  properties: {
    tenant: part,
    entityId: part,
    version: {
      description: `${part.description} On the scale of what producers send; or the constant 0, which loses to all that they send.`,
    },
    occurredAt: part,
    payload: {
      type: "object",
      description: "By fields of the entity type; without it columns are taken by the fields' names.",
      additionalProperties: part,
    },
  },
};
const limits = {
  type: "object",
  description: "What it may take; no more than its part of what all jobs may.",
  properties: {
    rowsPerSecond: count("Of its rows."),
    bytesPerSecond: count("Of what it reads."),
    cpuShare: { type: "number", description: "Of the machine's cores: more than 0, at most 1." },
  },
};
const watermark = {
  type: "object",
  description: "Until when an export surely holds what was written: one of both.",
  properties: {
    version: { description: "This one included; versions of all entities are one counter then." },
    positions: {
      type: "object",
      description: "As /v1/watermarks tells them before the export begins.",
      additionalProperties: { type: "string" },
    },
  },
};
const asked = {
  id: text("1 to 63 of a-z 0-9 -; made up when there is none."),
  source: text("`<root>/<path>`: a root of bulk.sources, and what is below it."),
  format: { type: "string", enum: FORMATS, description: "Where the files' names do not tell it." },
  csv: {
    type: "object",
    properties: {
      delimiter: text("One ASCII character."),
      columns: { type: "array", items: { type: "string" }, description: "Where the files have no header." },
      nullText: text("What stands where there is no value."),
    },
  },
  mapping,
  entityType: text("Such as scm.v1.File."),
  tenant: text("Rows of others are rejected."),
  priority: count("-100 to 100; greater comes first."),
  rejectLimit: count("After more rejected rows it pauses."),
  limits,
  through: {
    type: "string",
    enum: ["files", "queue"],
    description: "Files of its own, or row by row in turn with live events; by its size when there is none.",
  },
  reconcile: {
    type: "object",
    description:
      "What the export lacks, and nobody has written since the watermark, is deleted once confirmed.",
    required: ["watermark"],
    properties: { watermark },
  },
};
const job = {
  type: "object",
  properties: {
    kind: { type: "string", enum: ["bootstrap", "replay", "verify"] },
    ...asked,
    by: text("Who asked for it."),
    at: text("When; ISO 8601."),
    wish: { type: "string", enum: ["run", "pause", "cancel"] },
    state: {
      type: "object",
      additionalProperties: true,
      properties: {
        phase: { type: "string", enum: PHASES },
        code: text("Why it is paused or has failed, as a code of docs/errors.md."),
        reason: text("In words."),
        files: count("Of the source."),
        bytes: count("Of the source, as far as known."),
        bytesDone: count("Of these."),
        rowsLanded: count("In raw."),
        rowsRefined: count("In the models."),
        rowsWaiting: count("In the import queue, beside those that have landed."),
        waitingSince: text("ISO 8601: since when the oldest of them waits there."),
        rejected: count("That are no events."),
        verified: {
          type: "number",
          description: "How much of comparing source and lake is done, from 0 to 1.",
        },
        seconds: {
          type: "object",
          description: "For how long it has been at work in a phase.",
          properties: {
            landing: { type: "number" },
            refining: { type: "number" },
            verifying: { type: "number" },
          },
        },
        yieldedSeconds: {
          type: "number",
          description: "For how long it has held back while live events waited.",
        },
        rowsPerSecond: { type: "number", description: "Of late; while it runs." },
        etaSeconds: count("Until it is done, as it goes at the moment."),
        startedAt: text("ISO 8601."),
        writtenAt: text("ISO 8601; as of then."),
      },
    },
  },
  additionalProperties: true,
};
const pathId = { type: "object", required: [ID], properties: { [ID]: text("Of the job.") } };

/** Of an order that may be tried. */
const dryRun = (description: string) => ({
  type: "object",
  properties: { dryRun: { type: "string", enum: ["true", "false"], description } },
});
const orderedOr = (tried: string) => ({
  200: {
    description: `The job that is there already; or, of a dry run, ${tried}.`,
    type: "object",
    additionalProperties: true,
  },
  201: { ...job, description: "The job; it waits for its turn." },
});

export const startSchema = {
  tags,
  summary: "Bring in an export",
  description:
    "Listed, and checked on a sample, before anything lands: see docs/bulk.md. Asked for again in the same words, it is the same job.",
  security,
  querystring: dryRun(
    "true: what would land and be rejected, and why it would not begin; nothing is changed.",
  ),
  body: { type: "object", required: ["source"], properties: asked },
  response: {
    ...orderedOr("what would become of it"),
    ...errorResponses(
      ...bodyCodes,
      ...codes,
      "TRB-JOB-EXISTS",
      "TRB-BULK-MAPPING",
      "TRB-BULK-TYPE",
      "TRB-BULK-VERSIONS",
      "TRB-SOURCE-ROOT",
      "TRB-SOURCE-PATH",
      "TRB-SOURCE-LINK",
      "TRB-SOURCE-LAKE",
      "TRB-SOURCE-EMPTY",
      "TRB-SOURCE-FORMAT",
      "TRB-SOURCE-CHANGED",
      "TRB-SOURCE-DAMAGED",
      "TRB-SOURCE-UNREADABLE",
      "TRB-SOURCE-SCRATCH",
      "TRB-SOURCE-MEMORY",
      "TRB-SOURCE-STALLED",
      "TRB-SOURCE-READER",
      "TRB-TABLE-CORRUPT",
    ),
  },
} as const;

export const listSchema = {
  tags,
  summary: "All bulk jobs, the oldest first",
  security,
  response: {
    200: {
      description: "The jobs.",
      type: "object",
      properties: { jobs: { type: "array", items: job } },
    },
    ...errorResponses(...codes),
  },
} as const;

export const showSchema = {
  tags,
  summary: "How far a job is",
  security,
  params: pathId,
  response: { 200: { ...job, description: "The job." }, ...errorResponses(...codes, "TRB-JOB-UNKNOWN") },
} as const;

const WORDS = {
  pause: "Let a job rest: it stops behind what it is just committing",
  resume: "Let a paused job go on, or one that has failed try again",
  cancel: "End a job for good; what has landed stays",
} as const;

export const wishSchema = (word: keyof typeof WORDS) =>
  ({
    tags,
    summary: WORDS[word],
    security,
    params: pathId,
    response: {
      200: { ...job, description: "The job, and what is wished now." },
      ...errorResponses(...codes, "TRB-JOB-UNKNOWN", "TRB-JOB-ENDED"),
    },
  }) as const;

export const confirmSchema = {
  tags,
  summary: "Let a job delete what it has found that its export lacks; it goes on then",
  description: "Other numbers than those that the job has found are refused, with what these are.",
  security,
  params: pathId,
  body: {
    type: "object",
    required: ["count", "asOf"],
    properties: {
      count: count("How many entities, as its report tells."),
      asOf: count("The version of raw that they were found in."),
    },
  },
  response: {
    200: { ...job, description: "The job." },
    ...errorResponses(...bodyCodes, ...codes, "TRB-JOB-UNKNOWN", "TRB-JOB-ENDED", "TRB-RECONCILE-COUNT"),
  },
} as const;

export const verifySchema = {
  tags,
  summary: "Compare what a job has landed with its source again",
  description:
    "By a job of its own, which fails with TRB-VERIFY-DIFFERS where they differ; the report of the first one tells what was found.",
  security,
  params: pathId,
  body: { type: "object", properties: { id: asked.id, priority: asked.priority, limits } },
  response: {
    200: { ...job, description: "The job that is there already." },
    201: { ...job, description: "The job that compares; it waits for its turn." },
    ...errorResponses(...bodyCodes, ...codes, "TRB-JOB-UNKNOWN", "TRB-JOB-EXISTS", "TRB-VERIFY-NOTHING"),
  },
} as const;

export const reportSchema = {
  tags,
  summary: "What a job has brought, rejected and deleted, and whether source and lake are equal",
  description: "A page for people where `Accept` prefers text/html.",
  security,
  params: pathId,
  response: {
    200: {
      description: "The report: counts and digests by tenant, source against raw and each model's table.",
      content: {
        "application/json": { schema: { type: "object", additionalProperties: true } },
        "text/html": { schema: { type: "string" } },
      },
    },
    ...errorResponses(...codes, "TRB-JOB-UNKNOWN", "TRB-TABLE-CORRUPT"),
  },
} as const;

export const rejectsSchema = {
  tags,
  summary: "Rows of a job that are no events: where they lie, why, and their bytes",
  description:
    "Where `Accept` prefers application/x-ndjson: lines to be mended and brought in by a job of the same mapping. The header `link` names the next page.",
  security,
  params: pathId,
  querystring: {
    type: "object",
    properties: { limit: count("1 to 1000; 100 when not given."), after: text("`next` of the page before.") },
  },
  response: {
    200: {
      description: "A page.",
      content: {
        "application/json": { schema: { type: "object", additionalProperties: true } },
        "application/x-ndjson": { schema: { type: "string" } },
      },
    },
    ...errorResponses("TRB-REQ-INVALID", ...codes, "TRB-JOB-UNKNOWN", "TRB-TABLE-CORRUPT"),
  },
} as const;

export const watermarkSchema = {
  tags,
  summary: "How far raw and the stream are: to be taken before an export begins that is to be reconciled",
  security,
  params: {
    type: "object",
    required: [TYPE],
    properties: { [TYPE]: text("Of what is to be exported.") },
  },
  response: {
    200: { ...watermark, description: "For `reconcile.watermark` of an order." },
    ...errorResponses(...codes, "TRB-BULK-MAPPING", "TRB-BUS-STREAM-DOWN", "TRB-TABLE-CORRUPT"),
  },
} as const;

export const replaySchema = {
  tags,
  summary: "Run raw into a model again beside the table that is served",
  description: "It is looked at, paused, resumed and cancelled below /v1/bootstraps, and has a report there.",
  security,
  querystring: dryRun(
    "true: how much there is to read, and about how long that takes; nothing is asked for.",
  ),
  body: {
    type: "object",
    required: ["model", "action"],
    properties: {
      id: asked.id,
      model: text("Such as scm.files."),
      tenant: text("Of this one alone."),
      from: { description: "Events received from then on (ISO 8601), or of this version and later." },
      until: { description: "Events received before then, or of earlier versions." },
      action: { type: "string", enum: ["compare", "swap", "repair"] },
      incomplete: { type: "boolean", description: "Also where payloads in the object store are lost." },
      priority: asked.priority,
      limits,
    },
  },
  response: {
    ...orderedOr("the plan"),
    ...errorResponses(
      ...bodyCodes,
      ...codes,
      "TRB-JOB-EXISTS",
      "TRB-REPLAY-ORDER",
      "TRB-TABLE-NOT-FOUND",
      "TRB-TABLE-CORRUPT",
    ),
  },
} as const;
