import { errorResponses } from "../base/http.js";
import { FORMATS } from "../sources/formats.js";
import { TOKEN_CODES } from "../tenancy/http-auth.js";
import { PHASES } from "./jobs/job.js";

/** What /docs says of /v1/bootstraps. */

/** The parameter of paths. */
export const ID = "id";

const tags = ["bulk"];
const security = [{ token: [] }];
const text = (description: string) => ({ type: "string", description }) as const;
const count = (description: string) => ({ type: "integer", description }) as const;
const codes = [...TOKEN_CODES, "TRB-AUTH-TENANT", "TRB-STORE-FAILED"] as const;

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
};
const job = {
  type: "object",
  properties: {
    kind: text("bootstrap"),
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
        rejected: count("That are no events."),
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

export const startSchema = {
  tags,
  summary: "Bring in an export",
  description:
    "Listed, and checked on a sample, before anything lands: see docs/bulk.md. Asked for again in the same words, it is the same job.",
  security,
  querystring: {
    type: "object",
    properties: {
      dryRun: {
        type: "string",
        enum: ["true", "false"],
        description: "true: what would land and be rejected, and why it would not begin; nothing is changed.",
      },
    },
  },
  body: { type: "object", required: ["source"], properties: asked },
  response: {
    200: {
      description: "The job that is there already; or, of a dry run, what would become of it.",
      type: "object",
      additionalProperties: true,
    },
    201: { ...job, description: "The job; it waits for its turn." },
    ...errorResponses(
      "TRB-REQ-INVALID",
      "TRB-REQ-UNREADABLE",
      "TRB-REQ-TOO-SLOW",
      "TRB-REQ-TOO-LARGE",
      "TRB-REQ-CONTENT-TYPE",
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
  summary: "All bootstrap jobs, the oldest first",
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
