import { rm } from "node:fs/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import type { Code } from "../../base/codes.js";
import type { Duck } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { EventGate, leastReferred, type Pending } from "../../bus/event-gate.js";
import { withReference } from "../../contracts/payload-reference.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { unpackPayload } from "../../contracts/unpack.js";
import { EventBatch } from "../../ingest/event-batch.js";
import { RawWriter } from "../../ingest/raw-writer.js";
import { REJECT_BYTES } from "../../sources/formats.js";
import type { HeldFile } from "../../sources/held-file.js";
import type { Records } from "../../sources/splitter.js";
import { Grant } from "../../tenancy/grant.js";
import { costOf, isWhole, NO_FILE, ORDER } from "./chunk-file.js";
import type { Chunk, FileReject, LeaveOut, NextChunk, Opened, OpenFiles } from "./chunk-protocol.js";
import { Owner } from "./event-types.js";
import { type FileBatch, FilesReader } from "./files-reader.js";
import { PayloadsAside } from "./payloads-aside.js";
import { placeAt, positionIn } from "./row-events.js";

/** What the bus tells a producer of its token is told of the job here. */
const MESSAGES: Partial<Record<Code, readonly [Code, string]>> = {
  "TRB-AUTH-TENANT": ["TRB-BULK-TENANT", "tenant_id: expected the one that the job is for"],
  "TRB-AUTH-ENTITY-TYPE": ["TRB-BULK-TYPE", "entity_type: expected the one that the job is for"],
  "TRB-EVENT-ENTITY-TYPE": ["TRB-EVENT-ENTITY-TYPE", "entity_type: expected a type that this lake knows"],
};

/**
 * Makes chunks of files of ChangeEvents: each event is checked as the bus does it, with the version 0 beside, and lands as it
 * is. Where it runs it may be killed.
 */
export class WholeEvents {
  private readonly batches: AsyncGenerator<FileBatch>;
  private readonly gate: EventGate;
  private readonly grant: Grant;
  private readonly aside: PayloadsAside;
  private readonly owner: Owner;
  /** What the last chunk was made of. */
  private made: { readonly events: EventBatch; readonly chunk: Chunk } | undefined;

  private constructor(
    private readonly order: OpenFiles,
    registry: ProtoRegistry,
    private readonly reader: FilesReader,
    private readonly writer: RawWriter,
    private readonly onRejects: (rejects: readonly FileReject[]) => void,
    private readonly connections: readonly DuckDBConnection[],
  ) {
    const { entityType, tenant, payloads } = order;
    this.batches = reader.batches();
    const nothingHeld = { has: () => false };
    this.gate = new EventGate(registry, payloads.sizes, nothingHeld, () => 0, 0);
    this.grant = new Grant("bootstrap", {
      role: "producer",
      tenants: tenant === undefined ? "*" : [tenant],
      entityTypes: [entityType],
    });
    this.owner = new Owner(entityType, order.leaves);
    this.aside = new PayloadsAside(payloads.aside);
  }

  /** `duck` reaches `held`, the order's files, and `order.out`. Errors: TRB-BULK-MAPPING, those of SourceReader. */
  static async open(
    duck: Duck,
    held: readonly HeldFile[],
    order: OpenFiles,
    onRejects: (rejects: readonly FileReject[]) => void,
    getsOn: () => void,
  ): Promise<WholeEvents> {
    const registry = ProtoRegistry.of(order.descriptors);
    const { entityType, mapping } = order;
    if (registry.entityType(entityType) === undefined) {
      throw new TributaryError("TRB-BULK-MAPPING", `no message ${entityType}`);
    }
    if (mapping !== undefined) {
      throw new TributaryError("TRB-BULK-MAPPING", "expected no mapping, as the source holds whole events");
    }
    const connections = [await duck.connect(), await duck.connect()] as const;
    const reader = await FilesReader.open(connections[0], held, order, getsOn);
    return new WholeEvents(order, registry, reader, new RawWriter(connections[1]), onRejects, connections);
  }

  get opened(): Opened {
    return { rows: this.reader.rows };
  }

  /** After the last call: the engine keeps its memory for as long as somebody is connected. */
  close(): void {
    for (const connection of this.connections) connection.closeSync();
  }

  /** Errors: those of SourceReader. */
  async next(size: NextChunk): Promise<Chunk> {
    const { order, aside } = this;
    const events = new EventBatch(order.entityType, order.stream);
    let [rejected, read, rejectedBytes, left] = [0, 0, 0, 0];
    let end = false;
    // Also what is another type's, or no event, is read and told in chunks, behind each of which the job may stop.
    const bytes = () => Math.max(read, events.byteCount + aside.bytes);
    while (!isWhole(size, { rows: events.count, bytes: bytes(), rejectedBytes, left })) {
      const { value: batch, done } = await this.batches.next();
      if (done === true) {
        end = true;
        break;
      }
      const wrong = batch.events === undefined ? [] : this.take(batch.events, batch.of.file, events);
      const rejects = [...(this.owner.ownsRest ? batch.rejects : []), ...wrong].sort((a, b) => a.row - b.row);
      this.onRejects(rejects);
      rejected += rejects.length;
      rejectedBytes += costOf(rejects);
      read += batch.bytes;
      left = batch.left;
    }
    const file = events.count === 0 ? NO_FILE : await this.writer.write(events, order.out, ORDER);
    await this.reader.requireUnchanged();
    const chunk = { file, next: this.reader.at, end, rejects: rejected, bytes: read, aside: aside.end() };
    this.made = { events, chunk };
    return chunk;
  }

  /** The last chunk without some of its rows, which are rejected. */
  async leave({ positions }: LeaveOut): Promise<Chunk> {
    if (this.made === undefined) throw new TributaryError("TRB-INTERNAL");
    const { events, chunk } = this.made;
    const { order } = this;
    const left = new Set(positions);
    const rejects: FileReject[] = [];
    const kept = events.filter((i) => {
      const position = events.positions[i]!;
      if (!left.has(position)) return true;
      const { file, row: records } = placeAt(position);
      const bytes = Buffer.from(events.event(i).subarray(0, REJECT_BYTES));
      const message = "payload_reference: expected a payload that lies in the object store";
      const row = records - 1;
      rejects.push({ file, row, offset: undefined, code: "TRB-EVENT-PAYLOAD-MISSING", message, bytes });
      return false;
    });
    this.onRejects(rejects);
    await rm(order.out, { force: true });
    const file = kept.count === 0 ? NO_FILE : await this.writer.write(kept, order.out, ORDER);
    await this.reader.requireUnchanged();
    const made = { ...chunk, file, rejects: chunk.rejects + rejects.length, aside: undefined };
    this.made = { events: kept, chunk: made };
    return made;
  }

  /** Adds events to the batch; returns those that are none. */
  private take(
    { bytes, count, fields, ordinals, offsets }: Records,
    file: number,
    events: EventBatch,
  ): FileReject[] {
    const rejects: FileReject[] = [];
    const receivedAt = Date.now();
    for (let at = 0; at < count; at++) {
      const [start, end, row] = [fields[at * 2]!, fields[at * 2 + 1]!, ordinals[at]!];
      const position = positionIn(file, row + 1);
      const verdict = this.gate.check(bytes, start, end, this.grant);
      if (verdict !== undefined && !this.owner.owns(this.gate.envelope)) continue;
      let refused: readonly [Code, string] | undefined;
      if (verdict === undefined) {
        events.add(bytes, start, end, this.order.partition, position, receivedAt, this.gate.envelope);
      } else if (typeof verdict === "string") refused = told(verdict);
      else refused = this.settle(verdict, bytes, start, end, { position, receivedAt }, events);
      if (refused === undefined) continue;
      const [code, message] = refused;
      const some = Buffer.from(bytes.subarray(start, Math.min(end, start + REJECT_BYTES)));
      rejects.push({ file, row, offset: offsets[at]!, code, message, bytes: some });
    }
    return rejects;
  }

  /** Ends what the gate began; as `Collector.settle` of the bus does. */
  private settle(
    pending: Pending,
    bytes: Buffer,
    start: number,
    end: number,
    { position, receivedAt }: { position: string; receivedAt: number },
    events: EventBatch,
  ): readonly [Code, string] | undefined {
    const { partition } = this.order;
    const { sizes } = this.order.payloads;
    switch (pending.kind) {
      case "packed": {
        const plain = unpackPayload(pending.compression, pending.bytes, sizes.maxPayloadBytes);
        if (typeof plain === "string") return told(plain);
        if (!pending.checker.check(plain, 0, plain.length)) return told("TRB-EVENT-PAYLOAD-DECODE");
        break;
      }
      case "referring": {
        const least = leastReferred(sizes.maxPayloadBytes);
        if (pending.reference.sizeBytes < least) {
          return ["TRB-EVENT-REFERENCE", `payload_reference.size_bytes: expected at least ${least}`];
        }
        this.aside.refers(position, pending.reference);
        break;
      }
      case "large": {
        const reference = this.aside.take(pending.tenant, pending.typeUrl, pending.bytes);
        const referring = withReference(bytes, start, end, reference);
        events.add(referring, 0, referring.length, partition, position, receivedAt);
        return undefined;
      }
    }
    events.add(bytes, start, end, partition, position, receivedAt, this.gate.envelope);
    return undefined;
  }
}

const told = (code: Code): readonly [Code, string] =>
  MESSAGES[code] ?? [code, new TributaryError(code).message];
