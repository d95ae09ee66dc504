import type protobuf from "protobufjs";
import { OPERATION_CREATED, OPERATION_DELETED, OPERATION_UPDATED } from "../../contracts/envelope.js";
import type { ProtoRegistry } from "../../contracts/registry.js";
import { WireWriter } from "../../contracts/wire-writer.js";
import { Random } from "./random.js";
import { IssueMaker, project } from "./tracker-content.js";

export interface WorkloadOptions {
  readonly seed: number;
  readonly tenants: number;
  /** Issues over all tenants, at most; projects come on top. */
  readonly entities: number;
  /** Events made; duplicates come on top. */
  readonly events: number;
  /** Bytes of an event in the wire format, on average; about 400 at least. */
  readonly eventBytes?: number;
  /** Events per request body. */
  readonly bodyEvents?: number;
  readonly disorder?: Disorder;
}

/** How delivery goes wrong; shares of all events, from 0 to 1. */
export interface Disorder {
  /** Delivered a second time, some while later. */
  readonly duplicates?: number;
  /** Delivered later than what came after. */
  readonly late?: number;
  /** Followed by another event of the same entity and version, with other content. */
  readonly ties?: number;
  /** How many events wait to be delivered late at any time. */
  readonly window?: number;
}

/** A PublishRequest in the wire format. */
export interface EventBody {
  readonly bytes: Buffer;
  readonly count: number;
}

/** Live rows of one tenant once all events are applied. */
export interface TenantTotals {
  readonly issues: number;
  readonly projects: number;
  /** Sum of vote_count over the live issues. */
  readonly votes: number;
}

type EntityType = "tracker.v1.Issue" | "tracker.v1.Project";

/** Field 1 of an Any. */
const typeUrl = (entityType: EntityType): Buffer =>
  new WireWriter(128).ascii(1, `type.googleapis.com/${entityType}`).copy();
const TYPE_URLS: Readonly<Record<EntityType, Buffer>> = {
  "tracker.v1.Issue": typeUrl("tracker.v1.Issue"),
  "tracker.v1.Project": typeUrl("tracker.v1.Project"),
};

/** Parts of all events that are not creates. */
const DELETE_SHARE = 0.06;
const PROJECT_SHARE = 0.01;
const PROJECT_KEYS = ["PAY", "WEB", "OPS"] as const;
const PROJECTS = PROJECT_KEYS.length;
const TENANT_NAMES = ["acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka", "tyrell"];
const START_SECONDS = 1_700_000_000;
/** Bytes of an event beside the description; measured, see the test on sizes. */
const FRAME_BYTES = 270;
const DISORDER_SEED = 0x5eed;

/**
 * A seeded issue tracker: the same options give the same events, byte for byte. Few tenants and few issues get most
 * of the traffic (Zipf); issues are created, updated, deleted and created again; versions grow per entity, with gaps.
 */
export class TrackerWorkload {
  readonly tenants: readonly string[];
  private readonly options: WorkloadOptions;
  private readonly issues: IssueMaker;
  private readonly projectType: protobuf.Type;
  private readonly random: Random;
  private readonly writer = new WireWriter(128 * 1024);
  private readonly heads: Buffer[] = [];
  /** Cumulated shares of the tenants. */
  private readonly shares: Float64Array;
  /** Index of each tenant's first issue in the arrays of issues; one more at the end. */
  private readonly offsets: Int32Array;
  private readonly born: Int32Array;
  private readonly versions: Uint32Array;
  private readonly createdAt: Float64Array;
  /** vote_count of live issues; -1 of others. */
  private readonly votes: Int32Array;
  private readonly projectVersions: Uint32Array;
  private readonly projectLive: Uint8Array;
  private made = 0;

  constructor(registry: ProtoRegistry, options: WorkloadOptions) {
    this.options = options;
    this.projectType = registry.codec("tracker.v1.Project");
    this.random = new Random(options.seed);
    this.issues = new IssueMaker(registry.codec("tracker.v1.Issue"), this.random);
    const { tenants, entities } = options;
    this.tenants = Array.from(
      { length: tenants },
      (_, i) => TENANT_NAMES[i] ?? `tenant-${String(i + 1).padStart(4, "0")}`,
    );
    this.shares = new Float64Array(tenants);
    for (let i = 0; i < tenants; i++) this.shares[i] = (this.shares[i - 1] ?? 0) + 1 / (i + 1);
    const total = this.shares[tenants - 1] ?? 1;
    this.offsets = new Int32Array(tenants + 1);
    for (let i = 0; i < tenants; i++) {
      this.shares[i]! /= total;
      const share = this.shares[i]! - (this.shares[i - 1] ?? 0);
      this.offsets[i + 1] = this.offsets[i]! + Math.max(1, Math.floor(entities * share));
    }
    const issues = this.offsets[tenants]!;
    this.born = new Int32Array(tenants);
    this.versions = new Uint32Array(issues);
    this.createdAt = new Float64Array(issues);
    this.votes = new Int32Array(issues).fill(-1);
    this.projectVersions = new Uint32Array(tenants * PROJECTS);
    this.projectLive = new Uint8Array(tenants * PROJECTS);
  }

  /** Request bodies in the order of delivery. To be read once. */
  *bodies(): Generator<EventBody> {
    const size = this.options.bodyEvents ?? 100;
    let events: Buffer[] = [];
    for (const event of this.events()) {
      if (events.push(event) < size) continue;
      yield { bytes: requestOf(events), count: events.length };
      events = [];
    }
    if (events.length > 0) yield { bytes: requestOf(events), count: events.length };
  }

  /** Events in the order of delivery. To be read once, instead of `bodies`. */
  *events(): Generator<Buffer> {
    const { duplicates = 0, late = 0, window = 1000 } = this.options.disorder ?? {};
    const random = new Random(this.options.seed ^ DISORDER_SEED);
    const waiting: Buffer[] = [];
    for (const event of this.inOrder()) {
      let now: Buffer | undefined = event;
      if (random.chance(late)) now = undefined;
      if (now === undefined || random.chance(duplicates)) waiting.push(event);
      if (now !== undefined) yield now;
      if (waiting.length > window) yield takeAny(waiting, random);
    }
    while (waiting.length > 0) yield takeAny(waiting, random);
  }

  /** What is live once everything is applied, by tenant; to be asked when all events have been read. */
  totals(): Map<string, TenantTotals> {
    return new Map(
      this.tenants.map((tenant, t) => {
        const live = this.votes.subarray(this.offsets[t], this.offsets[t + 1]).filter((votes) => votes >= 0);
        const projects = this.projectLive.subarray(t * PROJECTS, (t + 1) * PROJECTS);
        return [
          tenant,
          {
            issues: live.length,
            projects: projects.reduce((sum, alive) => sum + alive, 0),
            votes: live.reduce((sum, votes) => sum + votes, 0),
          },
        ];
      }),
    );
  }

  private *inOrder(): Generator<Buffer> {
    const { events, entities, disorder } = this.options;
    const random = this.random;
    const createShare = Math.min(1, (1.25 * entities) / events);
    const ties = disorder?.ties ?? 0;
    while (this.made < events) {
      const t = this.pickTenant();
      const first = this.offsets[t]!;
      const quota = this.offsets[t + 1]! - first;
      const isNew = this.born[t]! === 0 || (this.born[t]! < quota && random.chance(createShare));
      const k = isNew ? this.born[t]! : random.zipf(this.born[t]!);
      const p = t * PROJECTS + (k % PROJECTS);
      if (this.projectVersions[p] === 0 || random.chance(PROJECT_SHARE)) {
        yield this.changeProject(t, p);
        continue;
      }
      if (isNew) this.born[t]!++;
      const at = first + k;
      const gone = this.votes[at]! < 0;
      const operation = gone
        ? OPERATION_CREATED
        : random.chance(DELETE_SHARE)
          ? OPERATION_DELETED
          : OPERATION_UPDATED;
      if (gone) this.createdAt[at] = this.now();
      this.versions[at]! += random.chance(0.1) ? 2 + random.below(4) : 1;
      this.votes[at] = operation === OPERATION_DELETED ? -1 : random.below(50);
      yield this.issueEvent(t, k, operation);
      // Against a delete the tie loses; against the rest either may stand, with the same votes: totals hold.
      if (this.made < events && random.chance(ties)) yield this.issueEvent(t, k, OPERATION_UPDATED);
    }
  }

  private issueEvent(t: number, k: number, operation: number): Buffer {
    const at = this.offsets[t]! + k;
    const projectKey = PROJECT_KEYS[k % PROJECTS]!;
    const key = `${projectKey}-${Math.floor(k / PROJECTS) + 1}`;
    const version = this.versions[at]!;
    if (operation === OPERATION_DELETED) {
      return this.event(t, "tracker.v1.Issue", key, operation, version, undefined);
    }
    const mean = Math.max(0, (this.options.eventBytes ?? 700) - FRAME_BYTES);
    const payload = this.issues.make(this.random, {
      key,
      projectKey,
      createdAt: this.createdAt[at]!,
      updatedAt: this.now(),
      descriptionLength: Math.min(60_000, Math.floor(mean * (0.5 + this.random.unit()))),
      votes: Math.max(0, this.votes[at]!),
    });
    return this.event(t, "tracker.v1.Issue", key, operation, version, payload);
  }

  private changeProject(t: number, p: number): Buffer {
    const key = PROJECT_KEYS[p % PROJECTS]!;
    const live = this.projectLive[p] === 1;
    const version = ++this.projectVersions[p]!;
    const operation = !live
      ? OPERATION_CREATED
      : this.random.chance(DELETE_SHARE)
        ? OPERATION_DELETED
        : OPERATION_UPDATED;
    this.projectLive[p] = operation === OPERATION_DELETED ? 0 : 1;
    const now = this.now();
    const payload =
      operation === OPERATION_DELETED
        ? undefined
        : this.projectType
            .encode(project(this.random, { key, createdAt: START_SECONDS, updatedAt: now }))
            .finish();
    return this.event(t, "tracker.v1.Project", key, operation, version, payload);
  }

  private event(
    t: number,
    entityType: EntityType,
    entityId: string,
    operation: number,
    version: number,
    payload: Uint8Array | undefined,
  ): Buffer {
    this.made++;
    const writer = this.writer
      .reset()
      .raw(this.head(t, entityType))
      .ascii(3, entityId)
      .number(4, operation)
      .number(5, version)
      .time(6, this.now(), (this.made % 50) * 20_000_000);
    if (payload === undefined) return writer.copy();
    const url = TYPE_URLS[entityType];
    writer.varint(7 * 8 + 2).varint(url.length + 1 + varintBytes(payload.length) + payload.length);
    return writer.raw(url).bytes(2, payload).copy();
  }

  /** tenant_id and entity_type, which stand in front of every event. */
  private head(t: number, entityType: EntityType): Buffer {
    const at = t * 2 + (entityType === "tracker.v1.Issue" ? 0 : 1);
    this.heads[at] ??= new WireWriter(256).ascii(1, this.tenants[t]!).ascii(2, entityType).copy();
    return this.heads[at];
  }

  /** Fifty events a second, in the workload's own time. */
  private now(): number {
    return START_SECONDS + Math.floor(this.made / 50);
  }

  private pickTenant(): number {
    const share = this.random.unit();
    let low = 0;
    let high = this.shares.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.shares[middle]! < share) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** A PublishRequest of these events. */
function requestOf(events: readonly Buffer[]): Buffer {
  let total = 0;
  for (const event of events) total += 1 + varintBytes(event.length) + event.length;
  const writer = new WireWriter(total);
  for (const event of events) writer.bytes(1, event);
  return writer.view();
}

/** Of lengths up to 2 MiB. */
const varintBytes = (value: number): number => (value < 0x80 ? 1 : value < 0x4000 ? 2 : 3);

function takeAny(waiting: Buffer[], random: Random): Buffer {
  const at = random.below(waiting.length);
  const taken = waiting[at]!;
  waiting[at] = waiting[waiting.length - 1]!;
  waiting.pop();
  return taken;
}
