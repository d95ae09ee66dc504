import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Admission, Reservation } from "../base/admission.js";
import { onceAnswered } from "../base/answers.js";
import { BodyReader, isGzip } from "../base/body-reader.js";
import { TributaryError } from "../base/errors.js";
import { errorResponses } from "../base/http.js";
import { uriOf } from "../contracts/payload-reference.js";
import type { Offloaded } from "../offload/offloaded.js";
import { grantOf, requireRole, TOKEN_CODES } from "../tenancy/http-auth.js";
import type { TokenVerifier } from "../tenancy/tokens.js";
import { UPLOAD_LIFE_MS, type UploadTickets } from "../tenancy/upload-tickets.js";

export interface UploadOptions {
  readonly offloaded: Offloaded;
  readonly verifier: TokenVerifier;
  readonly tickets: UploadTickets;
  readonly admission: Admission;
  /** The least and the most bytes of a payload. */
  readonly minBytes: number;
  readonly maxBytes: number;
}

interface Wanted {
  readonly tenant: string;
  readonly sha256: string;
  readonly sizeBytes: number;
}

/** Bytes of a question's body. */
const MAX_QUESTION_BYTES = 4096;

/**
 * Adds POST /v1/uploads, which answers with where a payload may be put before its event is published, and the PUT that
 * takes it: of that tenant, that length and that hash, and never in the place of anything else.
 */
export async function registerUploads(app: FastifyInstance, options: UploadOptions): Promise<void> {
  await app.register(async (scope) => {
    scope.post<{ Body: Wanted }>(
      "/v1/uploads",
      {
        bodyLimit: MAX_QUESTION_BYTES,
        schema: askSchema(options),
        onRequest: requireRole(options.verifier, "producer"),
      },
      (request) => ask(request, options),
    );
  });
  await app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", (_request, _payload, done) => done(null));
    scope.put<{ Querystring: { ticket: string } }>("/v1/uploads", { schema: putSchema }, (request, reply) =>
      take(request, reply, options),
    );
  });
}

async function ask(request: FastifyRequest<{ Body: Wanted }>, { offloaded, tickets }: UploadOptions) {
  const { tenant, sha256, sizeBytes } = request.body;
  const grant = grantOf(request);
  if (!grant.allowsTenant(tenant)) throw new TributaryError("TRB-AUTH-TENANT");
  const hash = Buffer.from(sha256, "hex");
  const uri = uriOf(tenant, hash);
  const expires = Date.now() + UPLOAD_LIFE_MS;
  const offer = await offloaded.offer({ uri, sizeBytes, sha256: hash }, UPLOAD_LIFE_MS);
  if (offer === "held") return { uri, uploaded: true };
  const place = offer ?? {
    url: `/v1/uploads?ticket=${await tickets.sign({ tenant, sha256, sizeBytes, share: grant.bearerShare }, expires)}`,
    headers: {},
  };
  return { uri, uploaded: false, method: "PUT", ...place, expiresAt: new Date(expires).toISOString() };
}

async function take(
  request: FastifyRequest<{ Querystring: { ticket: string } }>,
  reply: FastifyReply,
  { offloaded, tickets, admission }: UploadOptions,
) {
  const { tenant, sha256, sizeBytes, share } = await tickets.verify(request.query.ticket);
  const reader = new BodyReader(request.raw, isGzip(request.raw, sizeBytes), sizeBytes);
  let reservation: Reservation | undefined;
  try {
    reservation = admission.enter(share, reader.stop);
    const pieces = await reader.read(reservation);
    const payload = pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
    const hash = Buffer.from(sha256, "hex");
    if (payload.length !== sizeBytes || !(await offloaded.putAs(tenant, hash, payload))) {
      throw new TributaryError("TRB-UPLOAD-MISMATCH");
    }
    return { uri: uriOf(tenant, hash) };
  } finally {
    if (reservation !== undefined) onceAnswered(reply.raw, request.raw.socket, reservation.release);
  }
}

const text = (description: string) => ({ type: "string", description });

const askSchema = ({ minBytes, maxBytes }: UploadOptions) => ({
  tags: ["events"],
  summary: "Ask where a large payload may be put",
  description:
    "Before an event with a payload_reference is published, its payload is put where this answer says, with the " +
    "method it names. It takes exactly the bytes that were asked for, and only until expiresAt.",
  security: [{ token: [] }],
  body: {
    type: "object",
    additionalProperties: false,
    required: ["tenant", "sha256", "sizeBytes"],
    properties: {
      tenant: text("Whose payload it is."),
      sha256: { ...text("SHA-256 of its bytes, in hexadecimal digits."), pattern: "^[0-9a-f]{64}$" },
      sizeBytes: { type: "integer", minimum: minBytes, maximum: maxBytes },
    },
  },
  response: {
    200: {
      description: "Where to.",
      type: "object",
      properties: {
        uri: text("For payload_reference."),
        uploaded: { type: "boolean", description: "True when it is there already: publish at once." },
        method: text("PUT"),
        url: text("Relative to this server, or another server's. Send no token with it."),
        headers: {
          type: "object",
          description: "To be sent with it.",
          additionalProperties: { type: "string" },
        },
        expiresAt: text("ISO 8601."),
      },
    },
    ...errorResponses(
      "TRB-REQ-INVALID",
      ...TOKEN_CODES,
      "TRB-AUTH-TENANT",
      "TRB-STORE-FAILED",
      "TRB-LAKE-CLOSED",
    ),
  },
});

const putSchema = {
  tags: ["events"],
  summary: "Put a large payload",
  querystring: {
    type: "object",
    required: ["ticket"],
    properties: { ticket: text("As POST /v1/uploads has given it.") },
  },
  response: {
    200: {
      description: "It is durable.",
      type: "object",
      properties: { uri: text("For payload_reference.") },
    },
    ...errorResponses(
      "TRB-UPLOAD-MISMATCH",
      "TRB-AUTH-INVALID",
      "TRB-AUTH-EXPIRED",
      "TRB-REQ-TOO-LARGE",
      "TRB-REQ-TOO-SLOW",
      "TRB-REQ-ENCODING",
      "TRB-BUS-BUSY",
      "TRB-STORE-FAILED",
      "TRB-LAKE-CLOSED",
    ),
  },
};
