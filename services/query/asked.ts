import type { FastifyReply, FastifyRequest } from "fastify";
import Negotiator from "negotiator";
import { z } from "zod";
import type { Reservation } from "../base/admission.js";
import { giveUpUnread, onceAnswered, sendPieces } from "../base/answers.js";
import { BodyReader, isGzip } from "../base/body-reader.js";
import { TributaryError } from "../base/errors.js";
import { isTenantId } from "../contracts/envelope.js";
import type { Grant } from "../tenancy/grant.js";
import { grantOf } from "../tenancy/http-auth.js";
import type { AnswerFormat, Parameter, Scalar } from "./protocol.js";
import type { QueryAnswer, QueryService } from "./query-service.js";

const MEDIA_TYPES: Readonly<Record<AnswerFormat, string>> = {
  json: "application/json; charset=utf-8",
  csv: "text/csv; charset=utf-8; header=present",
  ndjson: "application/x-ndjson; charset=utf-8",
};

export const JSON_TYPE = "application/json";
const SCALARS: ReadonlySet<string> = new Set(["boolean", "number", "string"]);
const isScalar = (value: unknown): value is Scalar => value === null || SCALARS.has(typeof value);
const isOneKind = (items: readonly unknown[]) =>
  new Set(items.filter((item) => item !== null).map((item) => typeof item)).size < 2;
const isParameter = (value: unknown): value is Parameter =>
  isScalar(value) || (Array.isArray(value) && value.every(isScalar) && isOneKind(value));
/** The place or name of the first value that is no parameter. */
function wrongParameter(params: Parameters): string | number | undefined {
  if (!Array.isArray(params)) {
    const named = params as Readonly<Record<string, unknown>>;
    return Object.keys(named).find((name) => !isParameter(named[name]));
  }
  const at = (params as readonly unknown[]).findIndex((value) => !isParameter(value));
  return at < 0 ? undefined : at;
}

type Parameters = readonly Parameter[] | Readonly<Record<string, Parameter>>;
const bodySchema = z.strictObject({
  sql: z.string(),
  // By hand, and no further than the first that is wrong: a body holds hundreds of thousands of them, and a schema takes
  // seconds to tell what is wrong with each.
  params: z
    .custom<Parameters>((value) => typeof value === "object" && value !== null)
    .superRefine((params, context) => {
      const wrong = wrongParameter(params);
      if (wrong !== undefined) context.addIssue({ code: "custom", path: [wrong] });
    })
    .optional(),
  tenant: z.string().optional(),
});

/** One query over HTTP, and the memory it occupies from its first byte to the last of its answer. */
export class Asked {
  reservation: Reservation | undefined;
  private readonly request: FastifyRequest;
  private readonly reply: FastifyReply;
  private reader: BodyReader | undefined;
  private readonly leaving = new AbortController();
  private refused: TributaryError | undefined;

  constructor(request: FastifyRequest, reply: FastifyReply) {
    this.request = request;
    this.reply = reply;
  }

  /** For others' share: nothing of its answer has left yet. */
  readonly giveUp = (error: TributaryError): boolean => {
    if (this.reader?.stop(error) === true) return true;
    this.refused = error;
    this.leaving.abort();
    return true;
  };

  /** Errors: TRB-REQ-CONTENT-TYPE, TRB-REQ-INVALID and those of reading. */
  async body(maxBytes: number): Promise<Body> {
    const { raw, headers } = this.request;
    if (headers["content-type"] === undefined) {
      throw new TributaryError("TRB-REQ-CONTENT-TYPE", `content-type: expected ${JSON_TYPE}`);
    }
    this.reader = new BodyReader(raw, isGzip(raw, maxBytes), maxBytes);
    const text = Buffer.concat(await this.reader.read(this.reservation!)).toString("utf8");
    let body: unknown;
    try {
      body = JSON.parse(text.replace(/^\ufeff/, ""));
    } catch {
      throw new TributaryError("TRB-REQ-UNREADABLE", "body: expected JSON");
    }
    return readBody(body);
  }

  /** Asks, and sends the answer. */
  async answer(service: QueryService, body: Body): Promise<QueryAnswer> {
    const { request, reply, reservation } = this;
    const tenant = tenantOf(grantOf(request), body.tenant);
    const format = formatOf(request.headers.accept);
    const numbers = numbersOf(request.query);
    onceAnswered(reply.raw, request.raw.socket, () => this.leaving.abort());
    const { sql, params } = body;
    let answer: QueryAnswer;
    try {
      answer = await service.run(
        { tenant, sql, format, numbers, ...(params === undefined ? {} : { params }) },
        {
          signal: this.leaving.signal,
          begin: () => reservation!.become(0, this.giveUp),
          take: (bytes) => this.take(bytes),
        },
      );
    } catch (error) {
      throw this.refused ?? error;
    }
    const pieces = format === "json" ? jsonBody(answer) : answer.rows;
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    reservation!.become(length, giveUpUnread(reply));
    reply.type(MEDIA_TYPES[format]);
    if (format !== "json") {
      // Formats without room for it beside the rows.
      reply.header("tributary-snapshot", answer.snapshot).header("tributary-row-count", answer.rowCount);
    }
    sendPieces(reply, pieces, length);
    return answer;
  }

  /** What it holds is free once it has ended and its answer has left. */
  end(): void {
    if (this.reservation) onceAnswered(this.reply.raw, this.request.raw.socket, this.reservation.release);
  }

  private take(bytes: number): void {
    if (this.refused !== undefined) return;
    try {
      this.reservation?.grow(bytes);
    } catch (error) {
      this.giveUp(error as TributaryError);
    }
  }
}

function jsonBody({ columns, rows, rowCount, elapsedMs, snapshot }: QueryAnswer): Buffer[] {
  const end = JSON.stringify({ rowCount, elapsedMs, snapshot }).slice(1);
  return [Buffer.from(`{"columns":${JSON.stringify(columns)},"rows":[`), ...rows, Buffer.from(`],${end}`)];
}

type Body = z.infer<typeof bodySchema>;

function readBody(body: unknown): Body {
  const parsed = bodySchema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const unknown = issue?.code === "unrecognized_keys" ? issue.keys[0] : undefined;
  const field =
    unknown?.slice(0, 64) ?? (issue?.path.map((part) => String(part).slice(0, 64)).join(".") || "body");
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
export function tenantOf(grant: Grant, asked: unknown): string {
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
