import { createHash } from "node:crypto";
import { closeSync, openSync, writeSync } from "node:fs";
import type { Config } from "../../base/config.js";
import { type PayloadReference, uriOf } from "../../contracts/payload-reference.js";

/** What a chunk's process is told of payloads. */
export interface PayloadOrder {
  readonly sizes: Pick<Config["bus"], "maxPayloadBytes" | "maxOffloadBytes">;
  /** Where those wait that are too large for a row: a path at which nothing is, when a chunk is asked for. */
  readonly aside: string;
}

/** A payload that lies at `start` of the file of those of its chunk. */
export interface PayloadAside {
  readonly tenant: string;
  readonly sha256: Uint8Array;
  readonly sizeBytes: number;
  readonly start: number;
}

/** A payload that its row says is in the object store. */
export interface PayloadElsewhere extends Omit<PayloadReference, "sha256"> {
  readonly sha256: Uint8Array;
  /** Of the row. */
  readonly position: string;
}

/** What of a chunk's payloads does not lie in its file. Plain, as messages between processes are. */
export interface Aside {
  readonly payloads: readonly PayloadAside[];
  readonly elsewhere: readonly PayloadElsewhere[];
}

/**
 * Payloads that are too large for a row of raw, in the process that makes a chunk: it has no way to the object store,
 * so that they wait in a file beside the chunk's for whoever started it.
 */
export class PayloadsAside {
  private file: number | undefined;
  private at = 0;
  private payloads: PayloadAside[] = [];
  private elsewhere: PayloadElsewhere[] = [];

  /** Nothing is at `path`, or what is of no use any more. */
  constructor(private readonly path: string) {}

  /** Bytes that wait. */
  get bytes(): number {
    return this.at;
  }

  /** Puts a payload aside, and tells what its event says in its place. */
  take(tenant: string, typeUrl: string, payload: Uint8Array): PayloadReference {
    const sha256 = createHash("sha256").update(payload).digest();
    const sizeBytes = payload.length;
    this.file ??= openSync(this.path, "w", 0o600);
    for (let done = 0; done < sizeBytes; ) {
      done += writeSync(this.file, payload, done, sizeBytes - done, this.at + done);
    }
    this.payloads.push({ tenant, sha256, sizeBytes, start: this.at });
    this.at += sizeBytes;
    return { uri: uriOf(tenant, sha256), typeUrl, sizeBytes, sha256 };
  }

  refers(position: string, reference: PayloadReference): void {
    this.elsewhere.push({ position, ...reference });
  }

  /** What has been put aside since the last call; undefined when nothing has. Its file is the caller's. */
  end(): Aside | undefined {
    const { payloads, elsewhere, file } = this;
    if (file !== undefined) closeSync(file);
    this.file = undefined;
    this.at = 0;
    this.payloads = [];
    this.elsewhere = [];
    return payloads.length + elsewhere.length === 0 ? undefined : { payloads, elsewhere };
  }
}
