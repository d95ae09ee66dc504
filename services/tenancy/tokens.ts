import {
  decodeProtectedHeader,
  errors,
  type JWTPayload,
  type JWTVerifyGetKey,
  type JWTVerifyOptions,
  jwtVerify,
  SignJWT,
} from "jose";
import { TributaryError } from "../base/errors.js";
import { type Claims, Grant, readClaims } from "./grant.js";
import { type KeySet, KeysUnknown } from "./key-sets.js";
import type { SigningKey } from "./signing-key.js";

/** What our own key signs with, and nothing else does: no public key of a set is ever taken for this one's secret. */
const ALGORITHM = "HS256";
const MAX_TOKEN_BYTES = 16_384;

export interface TokenInit extends Claims {
  readonly subject: string;
  /** Seconds from now, at least 1. */
  readonly expiresIn: number;
}

/** A token for that audience. Errors: TRB-REQ-INVALID when a claim has a wrong shape. */
export function signToken(key: SigningKey, audience: string, token: TokenInit): Promise<string> {
  const body = {
    role: token.role,
    tenants: token.tenants,
    ...(token.entityTypes === undefined ? {} : { entity_types: token.entityTypes }),
    ...(token.scope === undefined ? {} : { scope: token.scope }),
  };
  if (!readClaims(body)) {
    throw new TributaryError(
      "TRB-REQ-INVALID",
      'token: expected role producer, analyst or operator, tenants "*" or tenant ids, and lists of names',
    );
  }
  if (token.subject === "") throw new TributaryError("TRB-REQ-INVALID", "subject: expected a name");
  if (!Number.isInteger(token.expiresIn) || token.expiresIn < 1) {
    throw new TributaryError("TRB-REQ-INVALID", "expiresIn: expected whole seconds, at least 1");
  }
  const now = Math.floor(Date.now() / 1000);
  return new SignJWT(body)
    .setProtectedHeader({ alg: ALGORITHM, typ: "JWT" })
    .setSubject(token.subject)
    .setAudience(audience)
    .setIssuedAt(now)
    .setExpirationTime(now + token.expiresIn)
    .sign(key.secret);
}

interface Verified {
  readonly grant: Grant;
  /** Milliseconds since the epoch. */
  readonly expiresAt: number;
}

export interface VerifierOptions {
  /** Whose keys are good beside our own. */
  readonly keySets?: readonly KeySet[];
  readonly remembered?: number;
}

/** Verifies bearer tokens. Tokens it has verified are remembered, the most recent `remembered`, until they expire. */
export class TokenVerifier {
  private readonly key: SigningKey;
  private readonly audience: string;
  private readonly keySets: readonly KeySet[];
  private readonly remembered: number;
  /** By the whole header; least recently used first. */
  private readonly known = new Map<string, Verified>();
  private generation = 0;

  constructor(
    key: SigningKey,
    audience: string,
    { keySets = [], remembered = 10_000 }: VerifierOptions = {},
  ) {
    this.key = key;
    this.audience = audience;
    this.keySets = keySets;
    this.remembered = remembered;
  }

  /** Every token is looked at anew: other keys are in force. */
  forget(): void {
    this.generation++;
    this.known.clear();
  }

  /**
   * The grant of an Authorization header; at once when the token is known.
   * Errors: TRB-AUTH-MISSING, TRB-AUTH-INVALID, TRB-AUTH-EXPIRED, TRB-AUTH-KEYS.
   */
  verify(header: string | undefined): Grant | Promise<Grant> {
    if (header === undefined || header === "") throw new TributaryError("TRB-AUTH-MISSING");
    const known = this.known.get(header);
    if (!known) return this.check(header);
    if (known.expiresAt <= Date.now()) {
      this.known.delete(header);
      throw new TributaryError("TRB-AUTH-EXPIRED");
    }
    this.known.delete(header);
    this.known.set(header, known);
    return known.grant;
  }

  private async check(header: string): Promise<Grant> {
    const token = /^Bearer +([A-Za-z0-9._-]+)$/i.exec(header)?.[1];
    if (token === undefined || token.length > MAX_TOKEN_BYTES) throw new TributaryError("TRB-AUTH-INVALID");
    const { generation } = this;
    const verified = await this.decode(token);
    // Only in the one spelling that everybody uses: under all others a single token could take everybody's place.
    if (header !== `Bearer ${token}` || generation !== this.generation) return verified.grant;
    if (this.known.size >= this.remembered) {
      const [oldest] = this.known.keys();
      if (oldest !== undefined) this.known.delete(oldest);
    }
    this.known.set(header, verified);
    return verified.grant;
  }

  private async decode(token: string): Promise<Verified> {
    try {
      const payload = await this.payload(token);
      const claims = readClaims(payload);
      if (claims && payload.sub && payload.exp !== undefined) {
        return { grant: new Grant(payload.sub, claims), expiresAt: payload.exp * 1000 };
      }
    } catch (cause) {
      if (cause instanceof errors.JWTExpired) throw new TributaryError("TRB-AUTH-EXPIRED");
      if (cause instanceof KeysUnknown) throw new TributaryError("TRB-AUTH-KEYS", undefined, { cause });
      // What exactly was wrong is nothing a forger should learn.
      throw new TributaryError("TRB-AUTH-INVALID", undefined, { cause });
    }
    throw new TributaryError("TRB-AUTH-INVALID");
  }

  /** The algorithm says whose keys are looked at; of a token nothing else does. */
  private async payload(token: string): Promise<JWTPayload> {
    const { audience, key } = this;
    const options = { audience, requiredClaims: ["exp", "aud", "sub"] };
    const { alg } = decodeProtectedHeader(token);
    const sets = this.keySets.filter(({ settings }) => settings.algorithms.some((name) => name === alg));
    if (sets.length === 0) {
      return (await jwtVerify(token, key.secret, { ...options, algorithms: [ALGORITHM] })).payload;
    }
    let failure: unknown;
    for (const set of sets) {
      const { issuer, algorithms } = set.settings;
      try {
        const own = { ...options, algorithms, ...(issuer === undefined ? {} : { issuer }) };
        return await verifiedBy(token, set.key, own);
      } catch (error) {
        // That one set's keys cannot be fetched matters only where no other set has the key.
        if (!(failure instanceof KeysUnknown)) failure = error;
      }
    }
    throw failure;
  }
}

/** Several keys may fit a token that names none. */
async function verifiedBy(
  token: string,
  keyOf: JWTVerifyGetKey,
  options: JWTVerifyOptions,
): Promise<JWTPayload> {
  try {
    return (await jwtVerify(token, keyOf, options)).payload;
  } catch (error) {
    if (!(error instanceof errors.JWKSMultipleMatchingKeys)) throw error;
    for await (const key of error) {
      try {
        return (await jwtVerify(token, key, options)).payload;
      } catch (failure) {
        if (!(failure instanceof errors.JWSSignatureVerificationFailed)) throw failure;
      }
    }
    throw new errors.JWSSignatureVerificationFailed();
  }
}
