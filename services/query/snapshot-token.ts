import { createCipheriv, randomBytes } from "node:crypto";
import type { CatalogTable } from "./catalog.js";

const BLOCK = 64;

/**
 * Seals which versions an answer was read at. A version counts the commits of all tenants of a table, so the token is
 * encrypted, padded and new each time: two tokens cannot even be told to be of the same or of different snapshots.
 */
export class SnapshotSealer {
  private readonly key: Buffer;

  constructor(key: Buffer = randomBytes(32)) {
    this.key = key;
  }

  seal(tenant: string, tables: readonly CatalogTable[]): string {
    const versions = Object.fromEntries(
      // All of one length, so that the token's tells nothing of how many commits there were.
      tables.map(({ domain, model, version }) => [`${domain}.${model}`, String(version).padStart(16, "0")]),
    );
    const text = JSON.stringify({ tenant, versions });
    const padded = text.padEnd(Math.ceil(text.length / BLOCK) * BLOCK);
    const nonce = randomBytes(12);
    const cipher = createCipheriv("aes-256-gcm", this.key, nonce);
    const sealed = Buffer.concat([cipher.update(padded, "utf8"), cipher.final()]);
    return Buffer.concat([nonce, sealed, cipher.getAuthTag()]).toString("base64url");
  }
}
