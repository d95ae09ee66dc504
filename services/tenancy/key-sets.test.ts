import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { exportJWK, generateKeyPair, type JWK, SignJWT } from "jose";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { loadConfig } from "../base/config.js";
import { KeySet, type KeySetSettings } from "./key-sets.js";
import type { SigningKey } from "./signing-key.js";
import { TokenVerifier } from "./tokens.js";

/** Tokens by the keys that other issuers publish. */

type Pair = Awaited<ReturnType<typeof generateKeyPair>>;
const MINUTE = 60_000;

let server: Server;
let url: string;
let published: JWK[];
let down: boolean;
let fetches: string[];
let clock: number;
let open: KeySet[];

beforeEach(async () => {
  published = [];
  down = false;
  fetches = [];
  clock = 0;
  open = [];
  server = createServer((request, response) => {
    fetches.push(request.url ?? "");
    if (down) response.writeHead(500).end();
    else response.end(JSON.stringify({ keys: published }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`;
});
afterEach(() => {
  for (const set of open) set.stop();
  server.close();
});

const own = { secret: new Uint8Array(32).fill(7) } as SigningKey;

function verifierOf(...more: Partial<KeySetSettings>[]): TokenVerifier {
  const settings = (more.length > 0 ? more : [{}]).map((one) => ({
    url,
    algorithms: ["ES256" as const],
    ...one,
  }));
  const sets = settings.map(
    (one) =>
      new KeySet(
        one,
        { warn: () => undefined },
        () => verifier.forget(),
        () => clock,
      ),
  );
  const verifier: TokenVerifier = new TokenVerifier(own, "tributary", { keySets: sets });
  open.push(...sets);
  return verifier;
}

async function pair(kid: string | undefined): Promise<Pair> {
  const made = await generateKeyPair("ES256", { extractable: true });
  const jwk = await exportJWK(made.publicKey);
  published.push({ ...jwk, alg: "ES256", use: "sig", ...(kid === undefined ? {} : { kid }) });
  return made;
}

async function bearer(
  { privateKey }: Pair,
  header: Record<string, unknown>,
  issuer = "https://issuer.test",
): Promise<string> {
  const token = await new SignJWT({ role: "producer", tenants: ["acme"] })
    .setProtectedHeader({ alg: "ES256", ...header })
    .setSubject("svc")
    .setIssuer(issuer)
    .setAudience("tributary")
    .setExpirationTime("1h")
    .sign(privateKey);
  return `Bearer ${token}`;
}
const refused = (code: string) => expect.objectContaining({ code }) as Error;
const verify = async (verifier: TokenVerifier, header: string) => verifier.verify(header);

test("keys rotate: the old and the new one are good side by side, then the new one alone", async () => {
  const verifier = verifierOf();
  const first = await bearer(await pair("1"), { kid: "1" });
  expect(await verify(verifier, first)).toMatchObject({ subject: "svc", role: "producer" });
  clock += MINUTE;
  const second = await bearer(await pair("2"), { kid: "2" });
  // Not known yet: the set is fetched again, once.
  expect(await verify(verifier, second)).toMatchObject({ subject: "svc" });
  expect(await verify(verifier, first)).toMatchObject({ subject: "svc" });
  expect(fetches.length).toBe(2);
  published.shift();
  clock += MINUTE;
  const third = await bearer(await pair("3"), { kid: "3" });
  expect(await verify(verifier, third)).toMatchObject({ subject: "svc" });
  // A token that was remembered goes with its key.
  await expect(verify(verifier, first)).rejects.toEqual(refused("TRB-AUTH-INVALID"));
  expect(await verify(verifier, second)).toMatchObject({ subject: "svc" });
});

test("a token that names no key is tried with each that fits", async () => {
  await pair(undefined);
  const second = await pair(undefined);
  const verifier = verifierOf();
  expect(await verify(verifier, await bearer(second, {}))).toMatchObject({ subject: "svc" });
  const stranger = await generateKeyPair("ES256", { extractable: true });
  await expect(verify(verifier, await bearer(stranger, {}))).rejects.toEqual(refused("TRB-AUTH-INVALID"));
});

test("several issuers at once; a token of one is none of another's", async () => {
  const made = await pair("1");
  const verifier = verifierOf(
    { issuer: "https://a.test", url: `${url}/a` },
    { issuer: "https://b.test", url: `${url}/b` },
  );
  for (const issuer of ["https://a.test", "https://b.test"]) {
    expect(await verify(verifier, await bearer(made, { kid: "1" }, issuer))).toMatchObject({
      subject: "svc",
    });
  }
  const other = bearer(made, { kid: "1" }, "https://c.test");
  await expect(verify(verifier, await other)).rejects.toEqual(refused("TRB-AUTH-INVALID"));
});

describe("while the keys cannot be fetched", () => {
  test("known keys are good for a day, unknown ones may be later", async () => {
    const verifier = verifierOf();
    const known = await pair("1");
    await verify(verifier, await bearer(known, { kid: "1" }));
    down = true;
    clock += 10 * MINUTE;
    expect(await verify(verifier, await bearer(known, { kid: "1", n: 2 }))).toMatchObject({ subject: "svc" });
    const unknown = await bearer(await pair("2"), { kid: "2" });
    await expect(verify(verifier, unknown)).rejects.toEqual(refused("TRB-AUTH-KEYS"));
    clock += 25 * 60 * MINUTE;
    await expect(verify(verifier, await bearer(known, { kid: "1", n: 3 }))).rejects.toEqual(
      refused("TRB-AUTH-KEYS"),
    );
    down = false;
    clock += MINUTE;
    expect(await verify(verifier, unknown)).toMatchObject({ subject: "svc" });
  });

  test("tokens with made-up keys cause one fetch in half a minute, and are refused for what they are", async () => {
    const verifier = verifierOf();
    const known = await pair("1");
    await verify(verifier, await bearer(known, { kid: "1" }));
    const stranger = await generateKeyPair("ES256", { extractable: true });
    const many = Array.from({ length: 30 }, (_, i) => bearer(stranger, { kid: `x${i}` }));
    for (const forged of many)
      await expect(verify(verifier, await forged)).rejects.toEqual(refused("TRB-AUTH-INVALID"));
    expect(fetches.length).toBe(1);
    down = true;
    clock += MINUTE;
    for (const forged of many)
      await expect(verify(verifier, await forged)).rejects.toEqual(refused("TRB-AUTH-KEYS"));
    expect(fetches.length).toBe(2);
  });
});

test("what a token's header says of keys and where they are is not followed", async () => {
  const stranger = await generateKeyPair("ES256", { extractable: true });
  const jwk = await exportJWK(stranger.publicKey);
  await pair("1");
  const verifier = verifierOf();
  for (const header of [
    { kid: "1", jku: `${url}/evil` },
    { kid: "1", x5u: `${url}/evil` },
    { kid: "1", jwk },
  ]) {
    const forged = await bearer(stranger, header);
    await expect(verify(verifier, forged)).rejects.toEqual(refused("TRB-AUTH-INVALID"));
  }
  expect(new Set(fetches)).toEqual(new Set(["/keys"]));
});

test("a public key is no secret: a token signed with it as one is refused, as is one with another algorithm", async () => {
  await pair("1");
  const verifier = verifierOf();
  const operator = (header: { readonly alg: string; readonly kid?: string }) =>
    new SignJWT({ role: "operator", tenants: "*" })
      .setProtectedHeader(header)
      .setSubject("x")
      .setAudience("tributary")
      .setExpirationTime("1h");
  const confused = await operator({ alg: "HS256", kid: "1" }).sign(Buffer.from(JSON.stringify(published[0])));
  await expect(verify(verifier, `Bearer ${confused}`)).rejects.toEqual(refused("TRB-AUTH-INVALID"));
  const { privateKey } = await generateKeyPair("ES384", { extractable: true });
  const other = await operator({ alg: "ES384", kid: "1" }).sign(privateKey);
  await expect(verify(verifier, `Bearer ${other}`)).rejects.toEqual(refused("TRB-AUTH-INVALID"));
  // Our own key goes on beside the sets.
  const local = await operator({ alg: "HS256" }).sign(own.secret);
  expect(await verify(verifier, `Bearer ${local}`)).toMatchObject({ role: "operator" });
});

test.each([
  ["http://keys.example/jwks", /https/],
  ["file:///etc/passwd", /https/],
  ["no url", /https/],
])("a set at %s is no setting", (bad, message) => {
  expect(() => loadConfig({ auth: { jwks: [{ url: bad }] } }, { env: {} })).toThrow(message);
});

test("a variable gives several sets, separated by commas", () => {
  const env = { TRIBUTARY_AUTH__JWKS: "https://a.test/jwks,https://b.test/jwks" };
  expect(loadConfig({}, { env }).auth.jwks.map(({ url: each }) => each)).toEqual([
    "https://a.test/jwks",
    "https://b.test/jwks",
  ]);
});
