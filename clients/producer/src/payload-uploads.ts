import { createHash } from "node:crypto";
import { setImmediate as turn } from "node:timers/promises";
import { type BusClient, failureOf, unreachable } from "./bus-client.js";
import { ProducerError } from "./errors.js";
import { type ChangeEvent, type PayloadReference, typeUrlOf } from "./event.js";

/** Where payloads go that are too large to travel in their event. */
export interface PayloadStore {
  /**
   * Resolves to where the payload lies, once it is durable there. Errors: ProducerError; when `retryable`, the same may
   * be asked again. To put a payload twice does no harm.
   */
  put(event: ChangeEvent, payload: Uint8Array, signal: AbortSignal): Promise<PayloadReference>;
}

/** Hashed between two turns of the event loop. */
const SLICE_BYTES = 1024 * 1024;

/**
 * Puts payloads by what the bus presigns: POST /v1/uploads {tenantId, sha256 (hex), sizeBytes} answers
 * {uri, url?, headers?}; without `url` the payload is there already, else it is PUT there with these headers. The bus
 * never lets one be overwritten: 412 says that somebody else has put it meanwhile.
 */
export class PresignedUploads implements PayloadStore {
  private readonly bus: BusClient;
  private readonly silenceMs: number;

  constructor(bus: BusClient, silenceMs: number) {
    this.bus = bus;
    this.silenceMs = silenceMs;
  }

  async put(event: ChangeEvent, payload: Uint8Array, signal: AbortSignal): Promise<PayloadReference> {
    const sha256 = await digestOf(payload);
    const sizeBytes = payload.length;
    const { uri, url, headers } = await this.presign(event.tenantId, sha256, sizeBytes, signal);
    if (url !== undefined) await this.upload(url, headers, payload, signal);
    return { uri, typeUrl: typeUrlOf(event.entityType), sizeBytes, sha256 };
  }

  private async presign(tenantId: string, sha256: Buffer, sizeBytes: number, signal: AbortSignal) {
    const body = Buffer.from(JSON.stringify({ tenantId, sha256: sha256.toString("hex"), sizeBytes }));
    const headers = { "content-type": "application/json", accept: "application/json" };
    const answer = await this.bus.post("/v1/uploads", headers, body, signal);
    if (answer instanceof ProducerError) throw answer;
    if (answer.status !== 200) throw failureOf(answer).error;
    try {
      const told = JSON.parse(answer.body.toString("utf8")) as Presigned;
      if (typeof told.uri === "string") return { ...told, headers: told.headers ?? {} };
    } catch {
      // Told below.
    }
    throw unreachable("expected where to upload, found something else");
  }

  private async upload(
    url: string,
    headers: Readonly<Record<string, string>>,
    payload: Uint8Array,
    signal: AbortSignal,
  ): Promise<void> {
    let status: number;
    try {
      const limit = AbortSignal.any([signal, AbortSignal.timeout(this.silenceMs)]);
      const body = payload as Uint8Array<ArrayBuffer>;
      const response = await fetch(url, { method: "PUT", headers, body, signal: limit });
      await response.arrayBuffer();
      status = response.status;
    } catch (cause) {
      throw unreachable("the upload was not answered", cause);
    }
    if (status === 412 || (status >= 200 && status < 300)) return;
    // 403 as well: the permission may have run out, and the next one is fresh.
    throw unreachable(`the object store answered the upload with status ${status}`);
  }
}

interface Presigned {
  readonly uri: string;
  readonly url?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

async function digestOf(payload: Uint8Array): Promise<Buffer> {
  const hash = createHash("sha256");
  for (let at = 0; at < payload.length; at += SLICE_BYTES) {
    hash.update(payload.subarray(at, at + SLICE_BYTES));
    await turn();
  }
  return hash.digest();
}
