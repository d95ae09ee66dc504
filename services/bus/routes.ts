import type { FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import Negotiator from "negotiator";
import type { Registry } from "prom-client";
import { Admission, type Reservation } from "../base/admission.js";
import { giveUpUnread, onceAnswered, sendPieces } from "../base/answers.js";
import { BodyReader, isGzip } from "../base/body-reader.js";
import type { Code } from "../base/codes.js";
import type { Config } from "../base/config.js";
import { TributaryError } from "../base/errors.js";
import { errorResponses } from "../base/http.js";
import { isSampled, type Traces } from "../base/traces.js";
import { JsonEvents } from "../contracts/json.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import type { Offloaded } from "../offload/offloaded.js";
import type { IngestStatus } from "../status/ingest-status.js";
import type { ChangeStreamWriter } from "../stream/change-stream.js";
import type { Streams } from "../stream/domains.js";
import type { Grant } from "../tenancy/grant.js";
import { grantOf, requireRole, TOKEN_CODES } from "../tenancy/http-auth.js";
import type { TokenVerifier } from "../tenancy/tokens.js";
import type { UploadTickets } from "../tenancy/upload-tickets.js";
import { ANSWER_BYTES, type Collected, collectJson, collectNdjson, collectProtobuf } from "./collect.js";
import { EventGate, leastReferred } from "./event-gate.js";
import { HeldTypes } from "./held-types.js";
import { BusMetrics } from "./metrics.js";
import { Outlets } from "./outlets.js";
import { ResponseWriter, type Results, type Stored } from "./response.js";
import { registerUploads } from "./uploads.js";
import { Work, Workshop } from "./work.js";

export interface BusOptions {
  readonly streams: Streams<ChangeStreamWriter>;
  /** Where payloads lie that are too large for a stream. */
  readonly offloaded: Offloaded;
  readonly tickets: UploadTickets;
  /** The descriptors now in force; asked with every request. */
  readonly registry: () => ProtoRegistry;
  readonly verifier: TokenVerifier;
  readonly config: Pick<Config, "bus">;
  readonly metrics: Registry;
  readonly traces: Traces;
  readonly log: FastifyBaseLogger;
  /** How ingest says its tables are doing; read once a second. */
  readonly status: () => Promise<IngestStatus | undefined>;
}

const PROTOBUF = "application/x-protobuf";
const JSON_TYPE = "application/json";
const NDJSON = "application/x-ndjson";

/** Adds POST /v1/events: change events in, durable on the stream before they are answered as accepted. */
export async function registerBus(app: FastifyInstance, options: BusOptions): Promise<void> {
  const held = new HeldTypes(options.status, options.log);
  await held.start();
  app.addHook("onClose", async () => held.stop());
  const { config, offloaded, verifier, tickets } = options;
  const admission = new Admission(
    config.bus.maxInFlightBytes,
    () => new TributaryError("TRB-BUS-BUSY", "too much is in flight; nothing was accepted"),
  );
  const publisher = new Publisher(options, admission, held);
  await registerUploads(app, {
    offloaded,
    verifier,
    tickets,
    admission,
    minBytes: leastReferred(config.bus.maxPayloadBytes),
    maxBytes: config.bus.maxOffloadBytes,
  });
  // A scope of its own: here bodies are handed over unread, whatever other services do with theirs.
  await app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser([PROTOBUF, JSON_TYPE, NDJSON], (_request, _payload, done) => done(null));
    scope.post(
      "/v1/events",
      {
        schema: publishSchema,
        // The schema is for readers of the documentation; the contracts check bodies.
        validatorCompiler: () => () => true,
        onRequest: requireRole(options.verifier, "producer"),
      },
      (request, reply) => publisher.publish(request, reply),
    );
  });
  const entityTypes = options.registry().entityTypes();
  options.log.info({ entityTypes }, "bus takes events");
}

/** What keeps events from being taken that are well. */
const UNABLE: readonly Code[] = ["TRB-BUS-TABLE-HELD", "TRB-STORE-FAILED", "TRB-LAKE-CLOSED"];

/** What events are checked by; a request keeps what it began with. */
interface Contracts {
  readonly registry: ProtoRegistry;
  readonly gate: EventGate;
  readonly json: JsonEvents;
}

class Publisher {
  private readonly limits: Config["bus"];
  private readonly offloaded: Offloaded;
  private readonly traces: Traces;
  private readonly outlets: Outlets;
  private readonly workshop = new Workshop();
  private readonly contracts: () => Contracts;
  private readonly writer = new ResponseWriter();
  private readonly metrics: BusMetrics;

  constructor(
    { streams, offloaded, traces, registry, config, metrics }: BusOptions,
    private readonly admission: Admission,
    held: HeldTypes,
  ) {
    this.limits = config.bus;
    this.offloaded = offloaded;
    this.traces = traces;
    this.metrics = new BusMetrics(
      metrics,
      () => this.admission.inFlightBytes,
      () => this.outlets.backlogs(),
    );
    const outlets = new Outlets(streams, config.bus, this.metrics);
    this.outlets = outlets;
    let known: Contracts | undefined;
    this.contracts = () => {
      const now = registry();
      if (known?.registry === now) return known;
      const gate = new EventGate(now, config.bus, held, (type) => outlets.routeOf(type));
      known = { registry: now, gate, json: new JsonEvents(now) };
      return known;
    };
  }

  async publish(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const started = performance.now();
    let status = 500;
    let reservation: Reservation | undefined;
    try {
      const type = mediaType(request);
      const { maxBodyBytes } = this.limits;
      const reader = new BodyReader(request.raw, isGzip(request.raw, maxBodyBytes), maxBodyBytes);
      const grant = grantOf(request);
      const contracts = this.contracts();
      this.outlets.admit(grant);
      reservation = this.admission.enter(grant.bearerShare, reader.stop);
      const pieces = await reader.read(reservation);
      const { results, events, traced, seenAt } = await this.collect(
        type,
        pieces,
        contracts,
        grant,
        reservation,
      );
      // Nothing is accepted that could not land: the producer is told by the status, too.
      const unable = UNABLE.find((code) => results.codes.includes(code));
      if (results.accepted === 0 && unable !== undefined) throw new TributaryError(unable);
      const decoded = Date.now();
      const candidates = traced.size === 0 ? undefined : acceptedOnes(results);
      this.requireHeld(seenAt);
      const stored = await this.outlets.append(results, events, grant.bearerShare);
      this.requireHeld(seenAt);
      if (candidates !== undefined) this.tellAppended(results, candidates, traced, decoded);
      this.metrics.count(results);
      status = 200;
      return this.answer(type, results, stored, reservation, reply);
    } catch (error) {
      if (error instanceof TributaryError) status = error.status;
      throw error;
    } finally {
      if (reservation !== undefined) onceAnswered(reply.raw, request.raw.socket, reservation.release);
      const ms = performance.now() - started;
      this.metrics.requestSeconds.observe({ status }, ms / 1000);
      const { traceparent } = request.headers;
      if (this.traces.on && typeof traceparent === "string" && isSampled(traceparent)) {
        const now = Date.now();
        this.traces.step("tributary.request", traceparent, now - ms, now, {
          "http.response.status_code": status,
        });
      }
    }
  }

  private async collect(
    type: string,
    pieces: readonly Buffer[],
    contracts: Contracts,
    grant: Grant,
    reservation: Reservation,
  ): Promise<Collected> {
    const { maxEventsPerRequest, maxPayloadBytes, maxOffloadBytes, maxDecodedBytes } = this.limits;
    const work = new Work(this.workshop, grant.bearerShare, maxDecodedBytes);
    const wait = work.begin();
    if (wait) await wait;
    try {
      const body = await work.join(pieces);
      const order = {
        ...contracts,
        grant,
        work,
        maxEvents: maxEventsPerRequest,
        maxPayloadBytes,
        maxOffloadBytes,
        offloaded: this.offloaded,
        tracing: this.traces.on,
        grow: reservation.grow,
      };
      if (type === PROTOBUF) return await collectProtobuf(body, order);
      return await (type === NDJSON ? collectNdjson(body, order) : collectJson(body, order));
    } finally {
      work.pause();
    }
  }

  /** Errors: TRB-STORE-FAILED, when it is too long ago that payloads were seen to lie where their events say. */
  private requireHeld(seenAt: number | undefined): void {
    if (seenAt === undefined || !this.offloaded.mayBeGone(seenAt)) return;
    throw new TributaryError("TRB-STORE-FAILED", "payloads were looked at too long ago; nothing is promised");
  }

  /** Of events that turned out not to be taken nothing is told. */
  private tellAppended(
    results: Results,
    candidates: readonly number[],
    traced: ReadonlyMap<number, string>,
    since: number,
  ): void {
    const now = Date.now();
    for (const [accepted, traceparent] of traced) {
      if (results.codes[candidates[accepted]!] !== undefined) continue;
      this.traces.step("tributary.append", traceparent, since, now, { events: results.accepted });
    }
  }

  private answer(
    type: string,
    results: Results,
    stored: Stored,
    reservation: Reservation,
    reply: FastifyReply,
  ): FastifyReply {
    const unread = giveUpUnread(reply);
    if (answerType(type, reply.request.headers.accept) === PROTOBUF) {
      const answer = this.writer.protobuf(results, stored);
      reservation.become(answer.length, unread);
      return sendPieces(reply.type(PROTOBUF), [answer], answer.length);
    }
    const about = results.count * ANSWER_BYTES;
    reservation.become(about, unread);
    reply.type("application/json; charset=utf-8");
    return sendPieces(reply, this.writer.json(results, stored), about, false);
  }
}

/** An answer comes in the request's own format, unless the other one is asked for. */
function answerType(type: string, accept: string | undefined): string {
  const own = type === PROTOBUF ? PROTOBUF : JSON_TYPE;
  if (accept === undefined) return own;
  const other = own === PROTOBUF ? JSON_TYPE : PROTOBUF;
  return new Negotiator({ headers: { accept } }).mediaType([own, other]) ?? own;
}

/** Indices in the request of what is accepted so far. */
function acceptedOnes({ codes }: Results): number[] {
  const accepted: number[] = [];
  for (let i = 0; i < codes.length; i++) if (codes[i] === undefined) accepted.push(i);
  return accepted;
}

/** Errors: TRB-REQ-CONTENT-TYPE. Fastify has refused other types, but lets a request without a type and body pass. */
function mediaType(request: FastifyRequest): string {
  const type = request.headers["content-type"]?.split(";", 1)[0]?.trim().toLowerCase();
  if (type !== PROTOBUF && type !== JSON_TYPE && type !== NDJSON) {
    throw new TributaryError(
      "TRB-REQ-CONTENT-TYPE",
      `content-type: expected ${PROTOBUF}, ${JSON_TYPE} or ${NDJSON}`,
    );
  }
  return type;
}

const text = (description: string) => ({ type: "string", description });

const eventSchema = {
  type: "object",
  description: "tributary.v1.ChangeEvent as proto3 JSON.",
  required: ["tenantId", "entityType", "entityId", "operation", "version"],
  properties: {
    tenantId: text("Whose data it is: [A-Za-z0-9][A-Za-z0-9._:-]{0,127}."),
    entityType: text('Full name of the payload message, such as "scm.v1.File".'),
    entityId: text("Names the entity within tenant and type: 1 to 1024 bytes of UTF-8."),
    operation: { type: "string", enum: ["OPERATION_CREATED", "OPERATION_UPDATED", "OPERATION_DELETED"] },
    version: text("1 to 2^63-1, growing per entity; the greatest wins."),
    occurredAt: { type: "string", format: "date-time", description: "When it happened in the product." },
    payload: {
      type: "object",
      description: "The entity's whole new state; none for OPERATION_DELETED.",
      required: ["@type"],
      properties: { "@type": text("type.googleapis.com/ and the entity_type.") },
      additionalProperties: true,
    },
    attributes: { type: "object", additionalProperties: { type: "string" } },
    eventId: text("The producer's own name for the event."),
  },
} as const;

/** What the documentation's page offers to send. */
const eventExample = {
  tenantId: "acme",
  entityType: "tracker.v1.Issue",
  entityId: "PAY-1",
  operation: "OPERATION_CREATED",
  version: "1",
  occurredAt: "2026-01-02T03:04:05Z",
  payload: { "@type": "type.googleapis.com/tracker.v1.Issue", key: "PAY-1", summary: "Hello" },
};

const responseSchema = {
  type: "object",
  properties: {
    results: {
      type: "array",
      description: "One per event, in input order.",
      items: {
        type: "object",
        properties: {
          accepted: { type: "boolean", description: "Whether the event is durable." },
          partition: text("Where it lies; accepted events only."),
          position: text("Opaque, ordered as a string within the partition; accepted events only."),
          code: text("Why it was rejected."),
          message: text("The field at fault and what was expected."),
          retryable: { type: "boolean", description: "Whether sending it again can help." },
        },
      },
    },
    accepted: { type: "integer" },
    rejected: { type: "integer" },
  },
} as const;

const publishSchema = {
  tags: ["events"],
  summary: "Publish change events",
  description:
    "Answered once every accepted event is durable. Events are judged one by one: a rejected one, or a bad line of " +
    "NDJSON, stops no other. Any answer but 200 means that nothing was promised. The body may be gzip-encoded.",
  security: [{ token: [] }],
  body: {
    // The documentation's page offers the first to try.
    content: {
      [JSON_TYPE]: {
        schema: {
          example: [eventExample],
          oneOf: [
            { type: "object", properties: { events: { type: "array", items: eventSchema } } },
            { type: "array", items: eventSchema },
          ],
        },
      },
      [PROTOBUF]: { schema: { ...text("A tributary.v1.PublishRequest."), format: "binary" } },
      [NDJSON]: {
        schema: {
          ...text("One event in JSON per line; blank lines are ignored."),
          example: JSON.stringify(eventExample),
        },
      },
    },
  },
  response: {
    200: {
      description: "A tributary.v1.PublishResponse; for JSON and NDJSON, as JSON.",
      content: {
        [JSON_TYPE]: { schema: responseSchema },
        [PROTOBUF]: { schema: { ...text("A tributary.v1.PublishResponse."), format: "binary" } },
      },
    },
    ...errorResponses(
      "TRB-REQ-UNREADABLE",
      ...TOKEN_CODES,
      "TRB-REQ-TOO-SLOW",
      "TRB-REQ-TOO-LARGE",
      "TRB-REQ-TOO-MANY-EVENTS",
      "TRB-REQ-CONTENT-TYPE",
      "TRB-REQ-ENCODING",
      "TRB-BUS-BUSY",
      "TRB-BUS-TABLE-HELD",
      "TRB-BUS-STREAM-DOWN",
      "TRB-STORE-FAILED",
      "TRB-LAKE-CLOSED",
      "TRB-BUS-DRAINING",
    ),
  },
};
