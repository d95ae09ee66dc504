import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { encodeEvent } from "../../services/contracts/encode-event.js";
import { ProtoRegistry } from "../../services/contracts/registry.js";
import { type EventBody, TrackerWorkload } from "../../services/main/workload/generator.js";
import { readForeign } from "../support/foreign.js";
import { Oracle } from "../support/oracle.js";
import { actualRow, digestOf, type TableName } from "../support/oracle-tables.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, untilLanded } from "../support/stack.js";

const ROUNDS = Number(process.env.TEST_CRASH_ROUNDS ?? 12);
const SEED = Number(process.env.TEST_SEED ?? Date.now() % 1_000_000);
const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
const requestType = registry.codec("tributary.v1.PublishRequest");
const responseType = registry.codec("tributary.v1.PublishResponse");

interface Published {
  readonly results: readonly { accepted: boolean; partition: string; position: string }[];
}
interface Sent {
  readonly tenant: string;
  readonly id: string;
  readonly version: string;
}

/** Publishes until the server is gone; notes which event each acknowledged position stands for. */
async function publish(
  url: string,
  token: string,
  bodies: Iterator<EventBody>,
  acked: Map<string, Sent>,
): Promise<void> {
  for (;;) {
    const { value: body, done } = bodies.next();
    if (done) return;
    let response: Response;
    let answer: ArrayBuffer;
    try {
      response = await fetch(`${url}/v1/events`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/x-protobuf" },
        body: new Uint8Array(body.bytes),
      });
      answer = await response.arrayBuffer();
    } catch {
      return;
    }
    if (!response.ok) continue;
    const { events } = requestType.decode(body.bytes) as unknown as {
      events: { tenant_id: string; entity_id: string; version: { toString(): string } }[];
    };
    const { results } = responseType.decode(Buffer.from(answer)) as unknown as Published;
    for (const [i, result] of results.entries()) {
      expect(result.accepted).toBe(true);
      const key = `${result.partition}/${result.position}`;
      expect(acked.has(key), `position ${key} was given twice`).toBe(false);
      const { tenant_id: tenant, entity_id: id, version } = events[i]!;
      acked.set(key, { tenant, id, version: version.toString() });
    }
  }
}

type Start = (data: string, random: () => number) => Promise<{ url: string; crash(): Promise<void> }>;

const MODES: readonly [string, Start][] = [
  [
    "all in one",
    async (data) => {
      const up = await Server.start("up", data);
      return { url: up.url, crash: () => up.kill() };
    },
  ],
  [
    "separate processes",
    async (data, random) => {
      const [bus, ingest] = await Promise.all([Server.start("bus", data), Server.start("ingest", data)]);
      const order = random() < 0.5 ? [bus, ingest] : [ingest, bus];
      const crash = async () => {
        await order[0]!.kill();
        // The other one goes on alone for a while.
        await new Promise((resolve) => setTimeout(resolve, random() * 150));
        await order[1]!.kill();
      };
      return { url: bus.url, crash };
    },
  ],
];

/** I1, I2, I7: whatever is killed when, an acknowledged position is in raw exactly once, and refined follows. */
describe.each(MODES)(`kill -9, %s (${ROUNDS} rounds, seed ${SEED})`, (_, start) => {
  it("keeps what was acknowledged, once, without gaps", async () => {
    const data = await temporaryFolder();
    let state = SEED;
    const random = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
    try {
      const workload = new TrackerWorkload(registry, {
        seed: SEED,
        tenants: 20,
        entities: 5_000,
        events: 2_000_000,
        bodyEvents: 40,
        disorder: { duplicates: 0.05, late: 0.05, ties: 0.02 },
      });
      const bodies = workload.bodies()[Symbol.iterator]();
      const acked = new Map<string, Sent>();
      const token = await makeToken(data, "producer");
      for (let round = 0; round < ROUNDS; round++) {
        const stack = await start(data, random);
        const publishers = Array.from({ length: 4 }, () => publish(stack.url, token, bodies, acked));
        await new Promise((resolve) => setTimeout(resolve, 20 + random() * 700));
        await stack.crash();
        await Promise.all(publishers);
      }
      // However busy the machine: something was acknowledged before most of the kills.
      expect(acked.size).toBeGreaterThan(ROUNDS * 10);
      const last = await Server.start("up", data);
      await untilLanded(data);
      expect(await last.stop()).toBe(0);
      await check(data, acked);
    } finally {
      await removeFolder(data);
    }
  });
});

async function check(data: string, acked: ReadonlyMap<string, Sent>): Promise<void> {
  const oracle = new Oracle();
  const standing = new Map<string, Sent>();
  const spans = new Map<string, number[]>();
  for (const type of ["tracker.v1.Issue", "tracker.v1.Project"]) {
    for (const row of await readForeign(join(data, "lake", "raw", type))) {
      const key = `${row.partition}/${row.position}`;
      expect(standing.has(key), `position ${key} stands twice`).toBe(false);
      standing.set(key, {
        tenant: String(row.tenant_id),
        id: String(row.entity_id),
        version: String(row.version),
      });
      const partition = String(row.partition);
      const positions = spans.get(partition);
      if (positions === undefined) spans.set(partition, [Number(row.position)]);
      else positions.push(Number(row.position));
      oracle.apply(eventOf(row));
    }
  }
  for (const [key, sent] of acked) expect(standing.get(key), key).toEqual(sent);
  for (const [partition, positions] of spans) {
    const last = positions.reduce((a, b) => Math.max(a, b), 0);
    expect(positions.length, `partition ${partition} has gaps`).toBe(last);
  }
  for (const table of ["tracker.issues", "tracker.projects"] as TableName[]) {
    const rows = await readForeign(join(data, "lake", "refined", ...table.split(".")));
    expect(digestOf(rows.map((row) => actualRow(table, row))), table).toBe(oracle.digest(table));
  }
  const verified = await cli(["table", "verify", "--data", data, "--json"]);
  expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, problems: [] });
}

const OPERATIONS: Readonly<Record<string, number>> = { CREATED: 1, UPDATED: 2, DELETED: 3 };

/** The event that a raw row keeps. */
function eventOf(row: Readonly<Record<string, unknown>>): Buffer {
  const occurred = row.occurred_at === null ? undefined : String(row.occurred_at);
  return encodeEvent({
    tenantId: String(row.tenant_id),
    entityType: String(row.entity_type),
    entityId: String(row.entity_id),
    operation: OPERATIONS[String(row.operation)]!,
    version: String(row.version),
    ...(occurred === undefined
      ? {}
      : {
          occurredAt: {
            seconds: Math.floor(Date.parse(occurred) / 1000),
            nanos: Number(/\.(\d{6})/.exec(occurred)?.[1] ?? "0") * 1000,
          },
        }),
    ...(row.payload === null
      ? {}
      : {
          payload: { typeUrl: String(row.payload_type_url), value: Buffer.from(String(row.payload), "hex") },
        }),
  });
}
