import type { FastifyRequest, onRequestAsyncHookHandler } from "fastify";
import { TributaryError } from "../base/errors.js";
import type { Grant, Role } from "./grant.js";
import type { TokenVerifier } from "./tokens.js";

/** What a route may answer that asks for a token. */
export const TOKEN_CODES = [
  "TRB-AUTH-MISSING",
  "TRB-AUTH-INVALID",
  "TRB-AUTH-EXPIRED",
  "TRB-AUTH-KEYS",
  "TRB-AUTH-ROLE",
] as const;

const grants = new WeakMap<FastifyRequest, Grant>();

/**
 * An onRequest hook: the request must carry a token of that role. It runs before anything of the body is read.
 * Errors: TOKEN_CODES.
 */
export function requireRole(verifier: TokenVerifier, role: Role): onRequestAsyncHookHandler {
  return async (request) => {
    const grant = await verifier.verify(request.headers.authorization);
    if (grant.role !== role) {
      throw new TributaryError("TRB-AUTH-ROLE", `expected a token with role ${role}`);
    }
    grants.set(request, grant);
  };
}

/** The grant that `requireRole` found for this request. */
export function grantOf(request: FastifyRequest): Grant {
  const grant = grants.get(request);
  if (!grant) throw new TributaryError("TRB-AUTH-MISSING");
  return grant;
}
