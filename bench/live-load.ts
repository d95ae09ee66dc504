import { writeFileSync } from "node:fs";
import { Agent, request } from "node:http";
import { encodeEvent } from "../services/contracts/encode-event.js";
import { Envelope, OPERATION_DELETED, OPERATION_UPDATED } from "../services/contracts/envelope.js";
import { ProtoRegistry } from "../services/contracts/registry.js";
import { WireWriter } from "../services/contracts/wire-writer.js";
import { Random } from "../services/main/workload/random.js";
import { ISSUE, issuesOf, REVISIONS } from "./bulk-export.js";

/**
 * Live events about the rows of an issue export, in a process of its own: at a steady rate they update and delete them,
 * bring older versions and deletes of the very version that was exported, and create others. Whatever becomes of the
 * server, each body is sent until it is taken. What must win in the end is written down.
 */
export interface LiveOrder {
  readonly token: string;
  readonly protoDirs: readonly string[];
  readonly eventsPerSecond: number;
  readonly eventBytes: number;
  readonly seed: number;
  /** Of the export, beside which so many more are created at most. */
  readonly rows: number;
  readonly more: number;
  readonly tenants: number;
  /** Where it is written what wins, by number: twice the version, plus 1 where the entity is deleted; uint32. */
  readonly winners: string;
}

export type ToLive = { readonly order: LiveOrder } | { readonly url: string } | { readonly stop: true };
export interface LiveReport {
  readonly events: number;
  readonly retries: number;
  readonly cpuSeconds: number;
  /** For so long no body was due because the ones before it were not taken. */
  readonly behindSeconds: number;
}
export type FromLive =
  | { readonly ready: { readonly keys: readonly string[] } }
  | { readonly report: LiveReport };

/** Contents of events; also of the rows of exports. */
export const CONTENTS = 100_000;
const BODY_EVENTS = 50;
const CONNECTIONS = 16;
/** A server that does not answer is dead, or stands still on purpose. */
const PATIENCE_MS = 10_000;

/** Which of the contents the event of this version has. */
export const contentOf = (number: number, version: number): number => (number + version * 7919) % CONTENTS;

let live: Live | undefined;
process.on("message", (message: ToLive) => {
  if ("order" in message) {
    live = new Live(message.order);
    process.send?.({ ready: { keys: live.keys } } satisfies FromLive);
  } else if ("url" in message) live?.use(message.url);
  else void live?.stop().then((report) => process.send?.({ report } satisfies FromLive));
});
process.on("disconnect", () => process.exit(0));

class Live {
  readonly keys: string[] = [];
  private readonly payloads: Buffer[] = [];
  private readonly winners: Uint32Array;
  private readonly random: Random;
  private readonly older = new Set<number>();
  private readonly agent = new Agent({ keepAlive: true, maxSockets: CONNECTIONS });
  private created = 0;
  private url: string | undefined;
  private stopped = false;
  private running: Promise<unknown> | undefined;
  private events = 0;
  private retries = 0;
  private due = 0;
  private behindMs = 0;
  private cpu = process.cpuUsage();

  constructor(private readonly order: LiveOrder) {
    const { rows, more, seed, protoDirs, eventBytes } = order;
    this.random = new Random(seed);
    const envelope = new Envelope();
    for (const event of issuesOf(ProtoRegistry.load(protoDirs), CONTENTS, eventBytes)) {
      envelope.read(event, 0, event.length);
      this.keys.push(event.toString("utf8", envelope.idStart, envelope.idEnd));
      this.payloads.push(event.subarray(envelope.payloadStart, envelope.payloadEnd));
    }
    this.winners = new Uint32Array(rows + more);
    for (let n = 0; n < rows; n++) this.winners[n] = 2 * (1 + (n % REVISIONS));
  }

  use(url: string): void {
    this.url = url;
    if (this.running !== undefined) return;
    this.cpu = process.cpuUsage();
    this.due = performance.now();
    this.running = Promise.all(Array.from({ length: CONNECTIONS }, () => this.drive()));
  }

  async stop(): Promise<LiveReport> {
    this.stopped = true;
    await this.running;
    this.agent.destroy();
    writeFileSync(this.order.winners, this.winners);
    const used = process.cpuUsage(this.cpu);
    return {
      events: this.events,
      retries: this.retries,
      cpuSeconds: (used.user + used.system) / 1e6,
      behindSeconds: this.behindMs / 1000,
    };
  }

  private async drive(): Promise<void> {
    const everyMs = (BODY_EVENTS * 1000) / this.order.eventsPerSecond;
    while (!this.stopped) {
      const now = performance.now();
      // What was not sent while the server was away is not sent all at once afterwards.
      if (now - this.due > 1000) {
        this.behindMs += now - this.due;
        this.due = now;
      }
      const at = this.due;
      this.due += everyMs;
      if (at > now) await new Promise((resolve) => setTimeout(resolve, at - now));
      const body = this.body();
      while (!(await this.post(body))) {
        this.retries++;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      this.events += BODY_EVENTS;
    }
  }

  private body(): Buffer {
    const writer = new WireWriter(BODY_EVENTS * 1024);
    for (let i = 0; i < BODY_EVENTS; i++) writer.bytes(1, this.event());
    return writer.copy();
  }

  private event(): Buffer {
    const { random, winners, order } = this;
    const isNew = random.chance(0.05) && this.created < order.more;
    const number = isNew ? order.rows + this.created++ : random.below(order.rows + this.created);
    const known = winners[number]!;
    let version = (known >> 1) + 1 + random.below(2);
    let isDeleted = !isNew && random.chance(0.15);
    if (random.chance(0.02)) {
      const old = 1 + random.below(REVISIONS);
      const name = number * 8 + old;
      if (old < known >> 1 && !this.older.has(name)) {
        this.older.add(name);
        version = old;
      } else if (known === 2 * (1 + (number % REVISIONS)) && number < order.rows) {
        // A delete wins a tie.
        version = known >> 1;
        isDeleted = true;
      }
    }
    if (version >= known >> 1) winners[number] = 2 * version + Number(isDeleted);
    return encodeEvent({
      ...this.keyOf(number),
      entityType: ISSUE,
      operation: isDeleted ? OPERATION_DELETED : OPERATION_UPDATED,
      version,
      ...(isDeleted ? {} : { payload: { value: this.payloads[contentOf(number, version)]! } }),
    });
  }

  private keyOf(number: number): { readonly tenantId: string; readonly entityId: string } {
    const { rows, tenants } = this.order;
    const tenant = number < rows ? Math.floor(number / Math.ceil(rows / tenants)) : number % tenants;
    const project = number < rows ? this.keys[number % CONTENTS]!.split("-")[0]! : "NEW";
    return {
      tenantId: `tenant-${String(tenant).padStart(4, "0")}`,
      entityId: `${project}-${String(number).padStart(9, "0")}`,
    };
  }

  private post(body: Buffer): Promise<boolean> {
    const headers = {
      authorization: `Bearer ${this.order.token}`,
      "content-type": "application/x-protobuf",
      "content-length": body.length,
    };
    return new Promise((resolve, reject) => {
      const { agent, url } = this;
      const sent = request(
        `${url}/v1/events`,
        { method: "POST", agent, headers, timeout: PATIENCE_MS },
        (answer) => {
          let text = "";
          answer.setEncoding("utf8").on("data", (more: string) => {
            text += more;
          });
          answer.on("error", () => resolve(false));
          answer.on("end", () => {
            const { statusCode = 0 } = answer;
            if (statusCode === 200) resolve(true);
            else if (statusCode === 429 || statusCode >= 500) resolve(false);
            else reject(new Error(`the bus answered ${statusCode}: ${text}`));
          });
        },
      );
      sent.on("timeout", () => sent.destroy());
      sent.on("error", () => resolve(false));
      sent.end(body);
    });
  }
}
