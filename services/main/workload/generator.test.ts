import { createHash } from "node:crypto";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Oracle } from "../../../test/support/oracle.js";
import { packageRoot } from "../../base/paths.js";
import { Envelope } from "../../contracts/envelope.js";
import { PayloadChecker } from "../../contracts/payload.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { TrackerWorkload, type WorkloadOptions } from "./generator.js";
import { Random } from "./random.js";

const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
const base: WorkloadOptions = { seed: 7, tenants: 20, entities: 2000, events: 10_000 };

const workload = (options: Partial<WorkloadOptions> = {}) =>
  new TrackerWorkload(registry, { ...base, ...options });

function digest(options: Partial<WorkloadOptions>): string {
  const sha = createHash("sha256");
  for (const { bytes } of workload(options).bodies()) sha.update(bytes);
  return sha.digest("hex");
}

/** tenant, type, id, version, operation of each event. */
function* envelopes(made: TrackerWorkload): Generator<Envelope> {
  const envelope = new Envelope();
  for (const event of made.events()) {
    expect(envelope.read(event, 0, event.length)).toBeUndefined();
    yield envelope;
  }
}

describe("the workload", () => {
  it("is the same for the same seed, byte for byte, and another for another", () => {
    expect(digest({})).toBe(digest({}));
    expect(digest({ seed: 8 })).not.toBe(digest({}));
    expect(digest({ disorder: { late: 0.1 } })).toBe(digest({ disorder: { late: 0.1 } }));
  });

  it("makes events that hold to the contract, with payloads that decode", () => {
    const checkers = new Map(
      ["tracker.v1.Issue", "tracker.v1.Project"].map((name) => [
        name,
        new PayloadChecker(registry.entityType(name)!),
      ]),
    );
    let payloads = 0;
    for (const envelope of envelopes(workload())) {
      if (envelope.payloadStart < 0) continue;
      payloads++;
      const checker = checkers.get(envelope.entityType())!;
      expect(checker.check(envelope.bytes, envelope.payloadStart, envelope.payloadEnd)).toBe(true);
    }
    expect(payloads).toBeGreaterThan(9000);
  });

  it("is of the size asked for, on average", () => {
    for (const eventBytes of [500, 700, 2000]) {
      let bytes = 0;
      for (const event of workload({ eventBytes }).events()) bytes += event.length;
      const average = bytes / base.events;
      expect(average).toBeGreaterThan(eventBytes * 0.95);
      expect(average).toBeLessThan(eventBytes * 1.05);
    }
  });

  it("packs bodies of the size asked for, the last one with the rest", () => {
    const counts = [...workload({ events: 250, bodyEvents: 100 }).bodies()].map(({ count }) => count);
    expect(counts).toEqual([100, 100, 50]);
  });

  it("is skewed: the first tenant and the first issues get most of the traffic", () => {
    const perTenant = new Map<string, number>();
    const perIssue = new Map<string, number>();
    for (const envelope of envelopes(workload())) {
      const { bytes } = envelope;
      const tenant = bytes.toString("utf8", envelope.tenantStart, envelope.tenantEnd);
      const id = `${tenant}/${bytes.toString("utf8", envelope.idStart, envelope.idEnd)}`;
      perTenant.set(tenant, (perTenant.get(tenant) ?? 0) + 1);
      perIssue.set(id, (perIssue.get(id) ?? 0) + 1);
    }
    const counts = [...perTenant.values()].sort((a, b) => b - a);
    expect(perTenant.size).toBe(20);
    expect(perTenant.get("acme")).toBe(counts[0]);
    expect(counts[0]!).toBeGreaterThan(8 * counts.at(-1)!);
    expect(perIssue.get("acme/PAY-1")!).toBeGreaterThan(20 * (perIssue.get("acme/PAY-300") ?? 1));
  });

  it("creates, updates, deletes and creates again, with versions that only grow", () => {
    const last = new Map<string, { version: bigint; operation: number }>();
    const seen = { created: 0, updated: 0, deleted: 0, again: 0 };
    for (const envelope of envelopes(workload())) {
      const id = envelope.bytes.toString("latin1", envelope.tenantStart, envelope.idEnd);
      const before = last.get(id);
      const { operation } = envelope;
      const version = envelope.version();
      if (before !== undefined) expect(version).toBeGreaterThan(before.version);
      expect(operation === 1).toBe(before === undefined || before.operation === 3);
      if (operation === 1) seen[before === undefined ? "created" : "again"]++;
      else seen[operation === 2 ? "updated" : "deleted"]++;
      last.set(id, { version, operation });
    }
    expect(seen.created).toBeGreaterThan(1500);
    expect(seen.updated).toBeGreaterThan(5000);
    expect(seen.deleted).toBeGreaterThan(300);
    expect(seen.again).toBeGreaterThan(100);
  });
});

describe("what must be live in the end", () => {
  const orders = fc.record({
    seed: fc.integer(),
    tenants: fc.integer({ min: 1, max: 5 }),
    entities: fc.integer({ min: 1, max: 60 }),
    events: fc.integer({ min: 1, max: 400 }),
    eventBytes: fc.constant(450),
    disorder: fc.record({
      duplicates: fc.constantFrom(0, 0.3),
      late: fc.constantFrom(0, 0.3, 1),
      ties: fc.constantFrom(0, 0.5),
      window: fc.constantFrom(1, 50),
    }),
  });

  it("is what the oracle finds, with duplicates, lateness and equal versions", () => {
    fc.assert(
      fc.property(orders, (options) => {
        const made = new TrackerWorkload(registry, options);
        const oracle = new Oracle();
        let delivered = 0;
        for (const { bytes, count } of made.bodies()) {
          oracle.applyRequest(bytes);
          delivered += count;
        }
        expect(delivered).toBeGreaterThanOrEqual(options.events);
        if (options.disorder.duplicates === 0) expect(delivered).toBe(options.events);
        for (const [tenant, totals] of made.totals()) {
          const issues = oracle.rows("tracker.issues", { tenant });
          expect({
            issues: issues.length,
            projects: oracle.rows("tracker.projects", { tenant }).length,
            votes: issues.reduce((sum, row) => sum + Number(row.vote_count), 0),
          }).toEqual(totals);
        }
      }),
      { numRuns: 60 },
    );
  });

  it("does not depend on how delivery went wrong", () => {
    const oracle = (disorder: WorkloadOptions["disorder"]) => {
      const result = new Oracle();
      const options = { ...base, events: 3000, ...(disorder === undefined ? {} : { disorder }) };
      for (const { bytes } of new TrackerWorkload(registry, options).bodies()) result.applyRequest(bytes);
      return result.digest("tracker.issues") + result.digest("tracker.projects");
    };
    expect(oracle({ duplicates: 0.3, late: 0.5 })).toBe(oracle(undefined));
  });
});

it("draws Zipf ranks about as 1 / (rank + 1)", () => {
  const random = new Random(3);
  const counts = new Array<number>(100).fill(0);
  for (let i = 0; i < 200_000; i++) counts[random.zipf(100)]!++;
  expect(counts[0]! / counts[9]!).toBeGreaterThan(5);
  expect(counts[0]! / counts[99]!).toBeGreaterThan(40);
  expect(Math.min(...counts)).toBeGreaterThan(0);
});
