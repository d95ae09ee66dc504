import { createHmac } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SignJWT } from "jose";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { nodeFiles } from "../base/files.js";
import { SigningKey } from "./signing-key.js";
import type { TokenInit } from "./tokens.js";
import { signToken, TokenVerifier } from "./tokens.js";

let folder: string;
let key: SigningKey;
beforeEach(async () => {
  folder = join(mkdtempSync(join(tmpdir(), "keys-")), "keys");
  key = await SigningKey.openOrCreate(folder);
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(join(folder, ".."), { recursive: true });
});

const producer: TokenInit = {
  role: "producer",
  tenants: ["acme", "umbrella"],
  entityTypes: ["scm.v1.File"],
  subject: "svc",
  expiresIn: 60,
};
const code = (expected: string) => expect.objectContaining({ code: expected }) as Error;
const bearer = async (token: TokenInit) => `Bearer ${await signToken(key, "tributary", token)}`;
const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
const verify = async (header: string | undefined) => new TokenVerifier(key, "tributary").verify(header);

describe("the signing key", () => {
  const file = () => join(folder, "signing.jwk");
  test("is made once, for its owner alone, and opened again", async () => {
    expect(statSync(file()).mode & 0o777).toBe(0o600);
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    expect((await SigningKey.openOrCreate(folder)).secret).toEqual(key.secret);
    expect(readdirSync(folder)).toEqual(["signing.jwk"]);
  });
  test("is durable before anybody uses it", async () => {
    rmSync(file());
    const order: string[] = [];
    const handle = await open(folder, "r");
    const prototype = Object.getPrototypeOf(handle) as typeof handle;
    await handle.close();
    const { sync } = prototype;
    vi.spyOn(prototype, "sync").mockImplementation(async function (this: typeof handle) {
      if (!existsSync(file()) && (await this.stat()).isFile()) order.push("synced");
      return sync.call(this);
    });
    const { syncFolder } = nodeFiles;
    vi.spyOn(nodeFiles, "syncFolder").mockImplementation((path) => {
      if (existsSync(file())) order.push("named");
      return syncFolder(path);
    });
    await SigningKey.openOrCreate(folder);
    vi.restoreAllMocks();
    expect(order).toEqual(["synced", "named"]);
  });
  test("is one, however many start at once", async () => {
    rmSync(file());
    const keys = await Promise.all(Array.from({ length: 8 }, () => SigningKey.openOrCreate(folder)));
    expect(new Set(keys.map(({ secret }) => Buffer.from(secret).toString("hex"))).size).toBe(1);
    expect(readdirSync(folder)).toEqual(["signing.jwk"]);
  });
  test.each([0o640, 0o604, 0o660])("that others may read (%o) is refused", async (mode) => {
    chmodSync(file(), mode);
    await expect(SigningKey.openOrCreate(folder)).rejects.toThrow(code("TRB-CONFIG"));
  });
  test.each([
    "",
    "{",
    '{"kty":"oct","k":"c2hvcnQ"}',
    '{"kty":"RSA"}',
    JSON.stringify({ kty: "oct", alg: "none", k: "c2hvcnQ".repeat(8) }),
    "null",
  ])("that is damaged (%j) is refused, not replaced, not quoted", async (text) => {
    writeFileSync(file(), text, { mode: 0o600 });
    await expect(SigningKey.openOrCreate(folder)).rejects.toThrow(code("TRB-CONFIG"));
    await expect(SigningKey.openOrCreate(folder)).rejects.not.toThrow(/c2hvcnQ/);
    expect(readFileSync(file(), "utf8")).toBe(text);
  });
});

describe("a token", () => {
  test("grants what its claims say, and nothing else", async () => {
    const grant = await verify(await bearer(producer));
    expect(grant).toMatchObject({ subject: "svc", role: "producer", scope: undefined });
    expect(["acme", "umbrella", "Acme", "acm", ""].filter((tenant) => grant.allowsTenant(tenant))).toEqual([
      "acme",
      "umbrella",
    ]);
    const bytes = Buffer.from("xacmex");
    expect(grant.allowsTenantBytes(bytes, 1, 5)).toBe(true);
    expect(grant.allowsTenantBytes(bytes, 1, 6)).toBe(false);
    expect(grant.allowsEntityType("scm.v1.File")).toBe(true);
    expect(grant.allowsEntityType("scm.v1.Commit")).toBe(false);
  });

  test("for all tenants grants every tenant, but no name that cannot be one", async () => {
    const grant = await verify(
      await bearer({ role: "analyst", tenants: "*", scope: ["eu"], subject: "a", expiresIn: 5 }),
    );
    expect(grant.scope).toEqual(["eu"]);
    expect(grant.allowsTenant("anyone")).toBe(true);
    expect(grant.allowsTenant("../x")).toBe(false);
    expect(grant.allowsEntityType("any.Type")).toBe(true);
  });

  test("ends at its exp, remembered or not", async () => {
    vi.useFakeTimers({ now: 1_700_000_000_000, toFake: ["Date"] });
    const header = await bearer(producer);
    const verifier = new TokenVerifier(key, "tributary");
    const grant = await verifier.verify(header);
    vi.setSystemTime(1_700_000_059_000);
    expect(verifier.verify(header)).toBe(grant);
    vi.setSystemTime(1_700_000_060_000);
    expect(() => verifier.verify(header)).toThrow(code("TRB-AUTH-EXPIRED"));
    await expect(verifier.verify(header)).rejects.toThrow(code("TRB-AUTH-EXPIRED"));
    await expect(verify(header)).rejects.toThrow(code("TRB-AUTH-EXPIRED"));
  });

  test("is forgotten when others were used since", async () => {
    const verifier = new TokenVerifier(key, "tributary", { remembered: 2 });
    const [a, b, c] = await Promise.all(["a", "b", "c"].map((subject) => bearer({ ...producer, subject })));
    const first = await verifier.verify(a);
    await verifier.verify(b);
    expect(verifier.verify(a)).toBe(first);
    await verifier.verify(c);
    expect(verifier.verify(a)).toBe(first);
    expect(verifier.verify(b)).toBeInstanceOf(Promise);
  });

  test("shares what is limited with tokens of its subject and tenants alone", async () => {
    const shareOf = async (subject: string, tenants: string[] | "*") => {
      const { bearerShare, tenantsShare } = await verify(await bearer({ ...producer, subject, tenants }));
      return [bearerShare, tenantsShare];
    };
    const [a, b, c, d] = await Promise.all([
      shareOf("cli", ["acme"]),
      shareOf("cli", ["umbrella"]),
      shareOf("other", ["acme"]),
      shareOf("cli", "*"),
    ]);
    expect(await shareOf("cli", ["acme"])).toEqual(a);
    expect(new Set([a, b, c, d].map((share) => share![0])).size).toBe(4);
    expect(new Set([a, b, d].map((share) => share![1])).size).toBe(3);
    expect(c![1]).toBe(a![1]);
  });

  test("in unusual spellings is good, and drives no other out", async () => {
    const verifier = new TokenVerifier(key, "tributary", { remembered: 2 });
    const [a, b] = await Promise.all(["a", "b"].map((subject) => bearer({ ...producer, subject })));
    const grant = await verifier.verify(a);
    for (const scheme of ["bearer ", "BEARER ", "Bearer  ", "bEARER   "]) {
      expect(await verifier.verify(b!.replace("Bearer ", scheme))).toMatchObject({ subject: "b" });
    }
    expect(verifier.verify(a)).toBe(grant);
  });

  const now = Math.floor(Date.now() / 1000);
  const claims = { role: "producer", tenants: "*", sub: "s", aud: "tributary", exp: now + 60 };
  const sign = (body: Record<string, unknown>, alg = "HS256", secret: Uint8Array = key.secret) =>
    new SignJWT(body).setProtectedHeader({ alg }).sign(secret);

  test.each<[string, Record<string, unknown>]>([
    ["no exp", { ...claims, exp: undefined }],
    ["no aud", { ...claims, aud: undefined }],
    ["no sub", { ...claims, sub: undefined }],
    ["an empty sub", { ...claims, sub: "" }],
    ["another audience", { ...claims, aud: "elsewhere" }],
    ["no role", { ...claims, role: undefined }],
    ["an unknown role", { ...claims, role: "root" }],
    ["no tenants", { ...claims, tenants: undefined }],
    ["an empty list of tenants", { ...claims, tenants: [] }],
    ["a tenant that cannot be one", { ...claims, tenants: ["a", "../b"] }],
    ["a star within the list", { ...claims, tenants: ["*"] }],
    ["entity types that are no list", { ...claims, entity_types: "scm.v1.File" }],
    ["a scope that is no list", { ...claims, scope: { eu: true } }],
    ["a start in the future", { ...claims, nbf: now + 1000 }],
  ])("with %s is not valid", async (_name, body) => {
    await expect(verify(`Bearer ${await sign(body)}`)).rejects.toThrow(code("TRB-AUTH-INVALID"));
  });

  test("of another algorithm or key is not valid", async () => {
    // Long enough for the others, which the library would refuse for a short one.
    const jwk = { kty: "oct", k: Buffer.alloc(64, key.secret).toString("base64url") };
    const file = join(folder, "long.jwk");
    writeFileSync(file, JSON.stringify(jwk), { mode: 0o600 });
    const long = await SigningKey.open(file);
    // By the very same key, so that nothing but the algorithm is wrong.
    for (const alg of ["HS384", "HS512"]) {
      const body = `${base64({ alg, typ: "JWT" })}.${base64(claims)}`;
      const mac = createHmac(alg.replace("HS", "sha"), long.secret).update(body).digest("base64url");
      const verifier = new TokenVerifier(long, "tributary");
      await expect(verifier.verify(`Bearer ${body}.${mac}`)).rejects.toThrow(code("TRB-AUTH-INVALID"));
    }
    const known = `Bearer ${await sign(claims, "HS256", long.secret)}`;
    expect(await new TokenVerifier(long, "tributary").verify(known)).toMatchObject({ subject: "s" });
    await expect(verify(`Bearer ${await sign(claims, "HS256", new Uint8Array(32))}`)).rejects.toThrow(
      code("TRB-AUTH-INVALID"),
    );
    const unsigned = `${base64({ alg: "none" })}.${base64(claims)}.`;
    await expect(verify(`Bearer ${unsigned}`)).rejects.toThrow(code("TRB-AUTH-INVALID"));
    // Signed rightly, but with a header that names no algorithm.
    const body = `${base64({ alg: "none" })}.${base64(claims)}`;
    const mac = createHmac("sha256", key.secret).update(body).digest("base64url");
    await expect(verify(`Bearer ${body}.${mac}`)).rejects.toThrow(code("TRB-AUTH-INVALID"));
  });

  test("of more bytes than any of ours is not valid, however well it is signed", async () => {
    const tenants = (count: number) => Array.from({ length: count }, (_, i) => `tenant-${i}`);
    const verifying = async (count: number) =>
      verify(`Bearer ${await sign({ ...claims, tenants: tenants(count) })}`);
    expect((await verifying(500)).tenants).toHaveLength(500);
    await expect(verifying(1500)).rejects.toThrow(code("TRB-AUTH-INVALID"));
  });

  test("that is damaged or no token is not valid", async () => {
    const good = await bearer(producer);
    const [head, body, mac] = good.slice(7).split(".");
    const wider = base64({ ...claims, role: "operator" });
    for (const header of [
      `Bearer ${head}.${wider}.${mac}`,
      `Bearer ${head}.${body}`,
      "Bearer x",
      "Basic eA==",
      `${good}x`,
      `Bearer ${"a".repeat(20_000)}`,
    ]) {
      await expect(verify(header), header.slice(0, 60)).rejects.toThrow(code("TRB-AUTH-INVALID"));
    }
    await expect(verify(undefined)).rejects.toThrow(code("TRB-AUTH-MISSING"));
    await expect(verify("")).rejects.toThrow(code("TRB-AUTH-MISSING"));
  });

  test("cannot be asked for with claims that would not be read", () => {
    for (const wrong of [
      { tenants: ["a/b"] },
      { tenants: [] },
      { expiresIn: 0 },
      { expiresIn: 1.5 },
      { subject: "" },
    ]) {
      expect(() => signToken(key, "tributary", { ...producer, ...wrong })).toThrow(code("TRB-REQ-INVALID"));
    }
  });
});
