import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { gunzipSync } from "node:zlib";
import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

export interface SeenEvent {
  readonly tenantId: string;
  readonly entityType: string;
  readonly entityId: string;
  readonly version: number;
  readonly bytes: Uint8Array;
}

export interface SeenRequest {
  /** From 1. */
  readonly number: number;
  readonly headers: IncomingMessage["headers"];
  readonly events: readonly SeenEvent[];
  readonly bytes: number;
}

export interface Refusal {
  readonly message?: string;
  readonly code: string;
  readonly retryable: boolean;
}

/** What a request meets. */
export type Behaviour =
  | { readonly kind: "take"; readonly refuse?: (event: SeenEvent, index: number) => Refusal | undefined }
  | {
      readonly kind: "status";
      readonly status: number;
      readonly code?: string;
      readonly headers?: Readonly<Record<string, string>>;
    }
  /** The connection is cut before or after the events were taken, or in the middle of the answer. */
  | { readonly kind: "cut"; readonly when: "before" | "after" | "half" }
  /** Taken, and never answered. */
  | { readonly kind: "silence" };

/** A bus that takes events into a list, and misbehaves as it is told. */
export class FakeBus {
  /** In the order they were taken. */
  readonly taken: SeenEvent[] = [];
  readonly requests: SeenRequest[] = [];
  behave: (request: SeenRequest) => Behaviour | Promise<Behaviour> = () => ({ kind: "take" });
  /** What was PUT where uploads go, by path. */
  readonly objects = new Map<string, Buffer>();
  /** Of POST /v1/uploads and of the PUT; 200 does as asked. */
  presign: (asked: number) => number = () => 200;
  put: (asked: number) => number = () => 200;
  /** What it says of where an upload lies. */
  place: (uri: string) => string = (uri) => uri;
  /** Whether uploads go to the bus itself, by a URL that is relative to it. */
  ticketed = false;
  presigned = 0;
  puts = 0;
  inFlight = 0;
  mostInFlight = 0;
  private readonly server: Server;

  private constructor() {
    this.server = createServer((request, response) => void this.serve(request, response));
  }

  static async start(): Promise<FakeBus> {
    const bus = new FakeBus();
    await new Promise<void>((done) => bus.server.listen(0, "127.0.0.1", done));
    return bus;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
  }

  private async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.mostInFlight = Math.max(this.mostInFlight, ++this.inFlight);
    try {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk as Buffer);
      const body = Buffer.concat(chunks);
      if (request.url === "/v1/uploads") return this.offer(body, response);
      if (request.method === "PUT") return this.store(request, body, response);
      const plain = request.headers["content-encoding"] === "gzip" ? gunzipSync(body) : body;
      const seen: SeenRequest = {
        number: this.requests.length + 1,
        headers: request.headers,
        events: eventsOf(plain),
        bytes: body.length,
      };
      this.requests.push(seen);
      this.answer(seen, await this.behave(seen), response);
    } catch {
      // The client went away.
      response.destroy();
    } finally {
      this.inFlight--;
    }
  }

  private offer(body: Buffer, response: ServerResponse): void {
    const status = this.presign(++this.presigned);
    if (status !== 200) {
      response
        .writeHead(status)
        .end(JSON.stringify({ error: { code: "TRB-AUTH-TENANT", message: "words" } }));
      return;
    }
    const { tenant, sha256 } = JSON.parse(body.toString()) as { tenant: string; sha256: string };
    const uri = `offload/${tenant}/${sha256}`;
    const url = this.ticketed ? `/${uri}` : `${this.url}/${uri}`;
    const uploaded = this.objects.has(`/${uri}`);
    const where = { method: "PUT", url, headers: { "if-none-match": "*" } };
    const told = { uri: this.place(uri), uploaded };
    response.end(JSON.stringify(uploaded ? told : { ...told, ...where }));
  }

  private store(request: IncomingMessage, body: Buffer, response: ServerResponse): void {
    const status = request.headers["if-none-match"] === "*" ? this.put(++this.puts) : 400;
    if (status === 200) this.objects.set(request.url!, body);
    response.writeHead(status).end();
  }

  private answer(seen: SeenRequest, behaviour: Behaviour, response: ServerResponse): void {
    if (behaviour.kind === "status") {
      const { status, code, headers = {} } = behaviour;
      response.writeHead(status, headers);
      response.end(code === undefined ? "<html>" : JSON.stringify({ error: { code, message: "words" } }));
      return;
    }
    if (behaviour.kind === "cut" && behaviour.when === "before") {
      response.destroy();
      return;
    }
    const refuse = behaviour.kind === "take" ? behaviour.refuse : undefined;
    const results = seen.events.map((event, i) => {
      const refusal = refuse?.(event, i);
      if (refusal === undefined) this.taken.push(event);
      return encodeResult(refusal, this.taken.length);
    });
    if (behaviour.kind === "silence") return;
    const bytes = encodeAnswer(results);
    response.writeHead(200, { "content-type": "application/x-protobuf", "content-length": bytes.length });
    if (behaviour.kind === "take") response.end(bytes);
    else if (behaviour.when === "after") response.destroy();
    else response.write(bytes.subarray(0, bytes.length >> 1), () => response.destroy());
  }
}

/** A PublishResponse of such results. */
export function encodeAnswer(results: readonly Uint8Array[]): Buffer {
  const out = new BinaryWriter();
  for (const result of results) out.tag(1, WireType.LengthDelimited).bytes(result);
  // The first byte of an accepted one is its field 1.
  const accepted = results.filter((result) => result[0] === 8).length;
  out.tag(2, WireType.Varint).int32(accepted);
  return Buffer.from(
    out
      .tag(3, WireType.Varint)
      .int32(results.length - accepted)
      .finish(),
  );
}

/** An EventResult: of an accepted event, or of a refusal. */
export function encodeResult(refusal: Refusal | undefined, position: number): Uint8Array {
  const out = new BinaryWriter();
  if (refusal === undefined) {
    out.tag(1, WireType.Varint).bool(true).tag(2, WireType.LengthDelimited).string("p0");
    return out.tag(3, WireType.LengthDelimited).string(String(position).padStart(6, "0")).finish();
  }
  out.tag(4, WireType.LengthDelimited).string(refusal.code);
  out.tag(5, WireType.LengthDelimited).string(refusal.message ?? "words");
  return out.tag(6, WireType.Varint).bool(refusal.retryable).finish();
}

function eventsOf(body: Uint8Array): SeenEvent[] {
  const reader = new BinaryReader(body);
  const events: SeenEvent[] = [];
  while (reader.pos < reader.len) {
    reader.tag();
    events.push(eventOf(reader.bytes()));
  }
  return events;
}

function eventOf(bytes: Uint8Array): SeenEvent {
  const reader = new BinaryReader(bytes);
  const texts = ["", "", "", ""];
  let version = 0;
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field <= 3) texts[field] = reader.string();
    else if (field === 5) version = Number(reader.int64());
    else reader.skip(type, field);
  }
  return { tenantId: texts[1]!, entityType: texts[2]!, entityId: texts[3]!, version, bytes };
}
