import { expect, test } from "vitest";
import type { CatalogTable } from "./catalog.js";
import { SnapshotSealer } from "./snapshot-token.js";

const table = (version: number, model = "files") => ({ domain: "scm", model, version }) as CatalogTable;

test("a snapshot's token tells nothing of versions, not even their length, nor whether two are the same", () => {
  const sealer = new SnapshotSealer();
  const versions = [0, 9, 10, 99, 123_456, Number.MAX_SAFE_INTEGER];
  const tokens = [...versions, ...versions].map((version) => sealer.seal("acme", [table(version)]));
  // Whatever the names, so that no step between two lengths lies within the digits.
  for (let length = 1; length <= 64; length++) {
    const tenant = "t".repeat(length);
    const lengths = versions.map((version) => sealer.seal(tenant, [table(version)]).length);
    expect(new Set(lengths).size).toBe(1);
  }
  // Each begins with a nonce of its own, so that no two share even their beginnings.
  expect(new Set(tokens.map((token) => token.slice(0, 8))).size).toBe(tokens.length);
  for (const token of tokens) {
    expect(Buffer.from(token, "base64url").toString("latin1")).not.toMatch(/acme|scm|files|versions/);
  }
});

test("lengths come in steps, so that names do not show by theirs", () => {
  const sealer = new SnapshotSealer();
  const lengths = ["a", "ab", "abc", "abcd"].map((tenant) => sealer.seal(tenant, [table(1)]).length);
  expect(new Set(lengths).size).toBe(1);
});
