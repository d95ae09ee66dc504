import { createHash } from "node:crypto";
import { setImmediate as turn } from "node:timers/promises";
import { type BusClient, type Failure, failureOf, unreachable } from "./bus-client.js";
import type { Answer } from "./connection.js";
import { ProducerError } from "./errors.js";
import { type ChangeEvent, type PayloadReference, typeUrlOf } from "./event.js";

type Entity = Pick<ChangeEvent, "tenantId" | "entityType">;

/** Hashed between two turns of the event loop. */
const SLICE_BYTES = 1024 * 1024;

/**
 * Puts payloads that are too large to travel in their event where the bus says: POST /v1/uploads {tenant, sha256 (hex),
 * sizeBytes} answers {uri, uploaded, method, url, headers}. What is `uploaded` is there already; all else is PUT to `url`,
 * of the bus itself or of an object store, with these headers. It never takes the place of anything: 412 says that
 * somebody else has put it meanwhile.
 */
export class PayloadUploads {
  private readonly bus: BusClient;

  constructor(bus: BusClient) {
    this.bus = bus;
  }

  /**
   * Resolves to where the payload lies, once it is durable there, or to what stands in the way; where that is
   * `retryable`, the same may be asked again. To put a payload twice does no harm. Never rejects.
   */
  async put(entity: Entity, payload: Uint8Array, signal: AbortSignal): Promise<PayloadReference | Refused> {
    try {
      return await this.tryPut(entity, payload, signal);
    } catch (cause) {
      return new Refused(unreachable("the upload ended in an error", cause));
    }
  }

  private async tryPut(
    entity: Entity,
    payload: Uint8Array,
    signal: AbortSignal,
  ): Promise<PayloadReference | Refused> {
    const sha256 = await digestOf(payload);
    const sizeBytes = payload.length;
    const place = await this.ask(entity.tenantId, sha256, sizeBytes, signal);
    if (place instanceof Refused) return place;
    if (!place.uploaded) {
      const answer = await this.bus.put(place.url, place.headers, payload, signal);
      const refused = refusalOf(answer);
      if (refused !== undefined) return refused;
    }
    return { uri: place.uri, typeUrl: typeUrlOf(entity.entityType), sizeBytes, sha256 };
  }

  private async ask(
    tenant: string,
    sha256: Buffer,
    sizeBytes: number,
    signal: AbortSignal,
  ): Promise<Place | Refused> {
    const body = Buffer.from(JSON.stringify({ tenant, sha256: sha256.toString("hex"), sizeBytes }));
    const headers = { "content-type": "application/json", accept: "application/json" };
    const answer = await this.bus.post("/v1/uploads", headers, body, signal);
    if (answer instanceof ProducerError) return new Refused(answer);
    if (answer.status !== 200) return Refused.by(failureOf(answer));
    return placeOf(answer) ?? new Refused(unreachable("expected where to upload, found something else"));
  }
}

/** Why a payload is not where it should be. */
export class Refused {
  constructor(
    readonly error: ProducerError,
    readonly retryAfterMs?: number,
  ) {}

  static by({ error, retryAfterMs }: Failure): Refused {
    return new Refused(error, retryAfterMs);
  }
}

type Place =
  | { readonly uri: string; readonly uploaded: true }
  | {
      readonly uri: string;
      readonly uploaded: false;
      readonly url: string;
      readonly headers: Readonly<Record<string, string>>;
    };

/** Undefined for what is no answer of a bus. */
function placeOf({ body }: Answer): Place | undefined {
  try {
    const told = JSON.parse(body.toString("utf8")) as {
      uri?: unknown;
      uploaded?: unknown;
      method?: unknown;
      url?: unknown;
      headers?: Readonly<Record<string, string>>;
    };
    const { uri, uploaded, method, url, headers = {} } = told;
    if (typeof uri !== "string" || !uri.isWellFormed()) return undefined;
    if (uploaded === true) return { uri, uploaded };
    return typeof url === "string" && method === "PUT" ? { uri, uploaded: false, url, headers } : undefined;
  } catch {
    return undefined;
  }
}

function refusalOf(answer: Answer | ProducerError): Refused | undefined {
  if (answer instanceof ProducerError) return new Refused(answer);
  const { status } = answer;
  if (status === 412 || (status >= 200 && status < 300)) return undefined;
  const failure = failureOf(answer);
  // Of the bus, which knows why. 401: the ticket has run out, and the next one is fresh.
  if (failure.status !== undefined && status !== 401) return Refused.by(failure);
  // 403 of an object store as well: the permission may have run out.
  return new Refused(unreachable(`the upload was answered with status ${status}`), failure.retryAfterMs);
}

async function digestOf(payload: Uint8Array): Promise<Buffer> {
  const hash = createHash("sha256");
  for (let at = 0; at < payload.length; at += SLICE_BYTES) {
    hash.update(payload.subarray(at, at + SLICE_BYTES));
    await turn();
  }
  return hash.digest();
}
