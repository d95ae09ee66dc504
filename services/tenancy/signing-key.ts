import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { chmod, link, open, readFile, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import { errno, TributaryError } from "../base/errors.js";
import { ensureFolder, nodeFiles } from "../base/files.js";

const KEY_BYTES = 32;
/** The name of the key within its folder. */
export const KEY_FILE = "signing.jwk";

/** The HS256 secret that tokens are signed and verified with. It is kept in one file that only its owner may read. */
export class SigningKey {
  readonly secret: Uint8Array;

  private constructor(secret: Uint8Array) {
    this.secret = secret;
  }

  /**
   * Opens signing.jwk in `folder`; makes it when it is not there. Of several processes that start at once one makes
   * it and all use that one. Durable when resolved. Errors: TRB-CONFIG.
   */
  static async openOrCreate(folder: string): Promise<SigningKey> {
    const path = join(folder, KEY_FILE);
    try {
      return await SigningKey.open(path);
    } catch (error) {
      if (!(error instanceof TributaryError) || errno(error.cause) !== "ENOENT") throw error;
    }
    await create(folder, path);
    return SigningKey.open(path);
  }

  /** Reads a JWK file: kty "oct", k of at least 32 bytes, readable by its owner alone. Errors: TRB-CONFIG. */
  static async open(path: string): Promise<SigningKey> {
    let text: string;
    try {
      const { mode } = await stat(path);
      if ((mode & 0o077) !== 0) {
        throw refusal("expected a file that only its owner may read (chmod 600), found wider permissions");
      }
      text = await readFile(path, "utf8");
    } catch (error) {
      if (error instanceof TributaryError) throw error;
      throw refusal(`expected a readable file (${errno(error)})`, error);
    }
    return new SigningKey(secretOf(text));
  }
}

function secretOf(text: string): Uint8Array {
  let jwk: unknown;
  try {
    jwk = JSON.parse(text);
  } catch {
    // The parser's own message would quote the key.
    throw refusal("expected a JWK");
  }
  const { kty, k, alg } = (typeof jwk === "object" && jwk !== null ? jwk : {}) as Record<string, unknown>;
  if (kty !== "oct" || typeof k !== "string" || (alg !== undefined && alg !== "HS256")) {
    throw refusal('expected a JWK with kty "oct" and alg "HS256"');
  }
  const secret = Buffer.from(k, "base64url");
  if (secret.length < KEY_BYTES) throw refusal(`expected a secret of at least ${KEY_BYTES} bytes`);
  return new Uint8Array(secret);
}

async function create(folder: string, path: string): Promise<void> {
  await ensureFolder(nodeFiles, folder);
  await chmod(folder, 0o700);
  const temporary = join(folder, `.${KEY_FILE}.${randomBytes(6).toString("hex")}.tmp`);
  const jwk = { kty: "oct", alg: "HS256", k: randomBytes(KEY_BYTES).toString("base64url") };
  // Never readable for others, not even before it has its name.
  const file = await open(temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
  try {
    await file.writeFile(`${JSON.stringify(jwk)}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  try {
    await link(temporary, path);
  } catch (error) {
    // Another process was first: its key is the one.
    if (errno(error) !== "EEXIST") throw error;
  } finally {
    await unlink(temporary);
  }
  await nodeFiles.syncFolder(folder);
}

const refusal = (message: string, cause?: unknown) =>
  new TributaryError("TRB-CONFIG", `signing key: ${message}`, cause === undefined ? {} : { cause });
