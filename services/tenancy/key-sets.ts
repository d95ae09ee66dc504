import { setTimeout as sleep } from "node:timers/promises";
import { createRemoteJWKSet, customFetch, errors, type JWTVerifyGetKey } from "jose";
import type { Config } from "../base/config.js";

export type KeySetSettings = Config["auth"]["jwks"][number];

/** How often keys are fetched anew, so that those that were taken away are believed no longer. */
const REFRESH_MS = 5 * 60_000;
/** The least time between two fetches: tokens that name unknown keys cause no more. */
const COOLDOWN_MS = 30_000;
/** Keys that could not be fetched anew for so long are believed no longer. */
const STALE_MS = 24 * 3600_000;
const FETCH_MS = 5_000;
const MAX_BYTES = 1024 * 1024;

/** What the library says of a key that the set has, or has not. */
const ANSWERS = [
  errors.JWKSNoMatchingKey,
  errors.JWKSMultipleMatchingKeys,
  errors.JOSENotSupported,
  errors.JWKInvalid,
];

/** The keys of one issuer, as its JWKS document lists them: new ones are found, and an outage of it is stood. */
export class KeySet {
  private readonly remote: ReturnType<typeof createRemoteJWKSet>;
  private readonly stopping = new AbortController();
  private text: string | undefined;
  private news = false;
  private triedAt = Number.NEGATIVE_INFINITY;
  private fetchedAt = Number.NEGATIVE_INFINITY;

  /** `changed` is told when other keys are in force than before. Where to fetch is never for a token to say. */
  constructor(
    readonly settings: KeySetSettings,
    private readonly log: { warn(about: object, message: string): void },
    private readonly changed: () => void = () => undefined,
    private readonly now: () => number = Date.now,
  ) {
    this.remote = createRemoteJWKSet(new URL(settings.url), {
      timeoutDuration: FETCH_MS,
      cooldownDuration: 0,
      cacheMaxAge: Number.POSITIVE_INFINITY,
      [customFetch]: (url, options) => this.fetch(url, options),
    });
  }

  /** Errors: those of the library; `KeysUnknown` when a key might be there, but cannot be fetched. */
  readonly key: JWTVerifyGetKey = async (header, token) => {
    try {
      if (this.now() - this.fetchedAt > STALE_MS) await this.remote.reload();
      return await this.remote(header, token);
    } catch (error) {
      if (ANSWERS.some((kind) => error instanceof kind)) throw error;
      if (error instanceof CoolingDown && this.now() - this.fetchedAt <= COOLDOWN_MS)
        throw new errors.JWKSNoMatchingKey();
      throw new KeysUnknown(error);
    } finally {
      this.tell();
    }
  };

  /** Fetches now and then, from now on. Whether the first fetch succeeds is nothing a start waits for. */
  start(): void {
    void this.refresh();
  }

  stop(): void {
    this.stopping.abort();
  }

  private async refresh(): Promise<void> {
    const { signal } = this.stopping;
    while (!signal.aborted) {
      await this.remote.reload().catch((error: unknown) => {
        if (error instanceof CoolingDown) return;
        this.log.warn({ err: error, url: this.settings.url }, "the keys of a JWKS cannot be fetched");
      });
      this.tell();
      await sleep(REFRESH_MS, undefined, { signal, ref: false }).catch(() => undefined);
    }
  }

  private async fetch(url: string, options: RequestInit): Promise<Response> {
    const now = this.now();
    if (now - this.triedAt < COOLDOWN_MS) throw new CoolingDown();
    this.triedAt = now;
    const response = await fetch(url, options);
    const text = await boundedText(response);
    if (response.status === 200) {
      this.fetchedAt = now;
      this.news ||= this.text !== undefined && this.text !== text;
      this.text = text;
    }
    return new Response(text, { status: response.status });
  }

  /** Only once the library goes by the new keys. */
  private tell(): void {
    if (!this.news || this.remote.reloading) return;
    this.news = false;
    this.changed();
  }
}

/** Whether a token is good cannot be told: its issuer's keys cannot be fetched. */
export class KeysUnknown extends Error {
  override readonly name = "KeysUnknown";

  constructor(cause: unknown) {
    super("the keys cannot be fetched", { cause });
  }
}

class CoolingDown extends Error {
  override readonly name = "CoolingDown";
}

async function boundedText(response: Response): Promise<string> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of response.body ?? []) {
    bytes += (piece as Uint8Array).length;
    if (bytes > MAX_BYTES) throw new Error(`expected at most ${MAX_BYTES} bytes`);
    pieces.push(piece as Uint8Array);
  }
  return Buffer.concat(pieces).toString("utf8");
}
