import { errors, jwtVerify, SignJWT } from "jose";
import { TributaryError } from "../base/errors.js";
import type { SigningKey } from "./signing-key.js";

/** What its bearer may put where: these bytes of this tenant, and nothing else. */
export interface UploadTicket {
  readonly tenant: string;
  /** Hex. */
  readonly sha256: string;
  readonly sizeBytes: number;
  /** Whose share of the bus's memory the upload takes. */
  readonly share: string;
}

const ALGORITHM = "HS256";
/** How long an upload may be begun after it was asked for. */
export const UPLOAD_LIFE_MS = 15 * 60_000;

/** Tickets for uploads: signed like tokens, for an audience of their own, so that neither is ever taken for the other. */
export class UploadTickets {
  private readonly audience: string;

  constructor(
    private readonly key: SigningKey,
    audience: string,
  ) {
    this.audience = `${audience}/uploads`;
  }

  /** Good until `expires`, in ms since the epoch. */
  sign(ticket: UploadTicket, expires: number): Promise<string> {
    return new SignJWT({ ...ticket })
      .setProtectedHeader({ alg: ALGORITHM })
      .setAudience(this.audience)
      .setExpirationTime(Math.floor(expires / 1000))
      .sign(this.key.secret);
  }

  /** Errors: TRB-AUTH-INVALID, TRB-AUTH-EXPIRED. */
  async verify(text: string): Promise<UploadTicket> {
    try {
      const { payload } = await jwtVerify(text, this.key.secret, {
        algorithms: [ALGORITHM],
        audience: this.audience,
        requiredClaims: ["exp", "aud"],
      });
      // Only `sign` makes what verifies.
      return payload as unknown as UploadTicket;
    } catch (cause) {
      const code = cause instanceof errors.JWTExpired ? "TRB-AUTH-EXPIRED" : "TRB-AUTH-INVALID";
      throw new TributaryError(code, undefined, { cause });
    }
  }
}
