import fc from "fast-check";
import { describe, expect, it } from "vitest";
import xxhash from "xxhash-wasm";
import { type EventInit, encodeEvent, encodeRequest } from "../../services/contracts/encode-event.js";
import { Oracle } from "./oracle.js";
import { xxh64 } from "./oracle-hash.js";
import { actualRow, columnsOf, digestOf, recordsOf, TABLE_NAMES } from "./oracle-tables.js";

/** A tracker.v1.Project with a key and a name. */
const project = (key: string, name: string): Uint8Array => Buffer.concat([field(1, key), field(2, name)]);
const field = (number: number, text: string): Buffer => {
  const bytes = Buffer.from(text);
  return Buffer.concat([Buffer.from([number * 8 + 2, bytes.length]), bytes]);
};

const event = (init: EventInit): Buffer =>
  encodeEvent({ tenantId: "t", entityType: "tracker.v1.Project", entityId: "PAY", operation: 1, ...init });

function names(...events: Buffer[]): unknown[] {
  const oracle = new Oracle();
  for (const each of events) oracle.apply(each);
  return oracle.rows("tracker.projects").map((row) => row.name);
}

describe("the order of last-write-wins", () => {
  const named = (name: string, init: EventInit): Buffer =>
    event({ payload: { value: project("PAY", name) }, ...init });

  it("lets the greater version stand, beyond 2^53 too, whatever comes last", () => {
    const big = 2n ** 62n;
    const [a, b] = [named("old", { version: big }), named("new", { version: big + 1n })];
    expect(names(a, b)).toEqual(["new"]);
    expect(names(b, a)).toEqual(["new"]);
  });

  it("lets a delete beat the rest of its version, and a newer create bring the row back", () => {
    const gone = event({ operation: 3, version: 5 });
    const kept = named("kept", { version: 5, operation: 2, occurredAt: { seconds: 9 } });
    expect(names(kept, gone)).toEqual([]);
    expect(names(gone, kept)).toEqual([]);
    expect(names(gone, named("back", { version: 6 }), kept)).toEqual(["back"]);
  });

  it("settles equal versions by the unsigned hash of type URL and payload, before time", () => {
    const variants = ["a", "b", "c", "d", "e", "f"].map((name) => ({
      name,
      hash: xxh64(
        Buffer.concat([Buffer.from("type.googleapis.com/tracker.v1.Project"), project("PAY", name)]),
      ),
    }));
    const winner = variants.reduce((best, each) => (each.hash > best.hash ? each : best)).name;
    expect(variants.some(({ hash }) => hash >= 2n ** 63n)).toBe(true);
    expect(variants.some(({ hash }) => hash < 2n ** 63n)).toBe(true);
    const events = variants.map(({ name }, i) =>
      named(name, { version: 1, occurredAt: { seconds: name === winner ? 0 : 100 + i } }),
    );
    expect(names(...events)).toEqual([winner]);
    expect(names(...events.reverse())).toEqual([winner]);
  });

  it("does not depend on the order of events", () => {
    const anyEvent = fc.record({
      version: fc.integer({ min: 1, max: 3 }),
      operation: fc.constantFrom(1, 2, 3),
      name: fc.constantFrom("x", "y", "z"),
      micros: fc.option(fc.integer({ min: -1, max: 2 })),
    });
    fc.assert(
      fc.property(fc.array(anyEvent, { minLength: 1, maxLength: 12 }), fc.integer(), (inits, seed) => {
        const events = inits.map(({ version, operation, name, micros }) =>
          event({
            version,
            operation,
            ...(micros === null ? {} : { occurredAt: { seconds: 5, nanos: (micros + 1) * 1000 } }),
            ...(operation === 3 ? {} : { payload: { value: project("PAY", name) } }),
          }),
        );
        const shuffled = [...events].sort(
          (a, b) =>
            Number(xxh64(Buffer.concat([a, Buffer.from(String(seed))])) & 0xffn) - Number(xxh64(b) & 0xffn),
        );
        expect(names(...shuffled)).toEqual(names(...events));
      }),
    );
  });
});

describe("xxh64", () => {
  it("agrees with the published vectors and with the library", async () => {
    expect(xxh64(new Uint8Array(0))).toBe(0xef46db3751d8e999n);
    expect(xxh64(Buffer.from("abc"))).toBe(0x44bc2cf5ad770999n);
    const { h64Raw } = await xxhash();
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(xxh64(bytes)).toBe(h64Raw(bytes));
      }),
    );
  });
});

describe("rows to compare", () => {
  const oracle = new Oracle();
  const line = (entityType: string, entityId: string, payload: object) =>
    oracle.applyLine(
      JSON.stringify({
        tenantId: "t",
        entityType,
        entityId,
        operation: "OPERATION_CREATED",
        version: "1",
        payload: { "@type": `type.googleapis.com/${entityType}`, ...payload },
      }),
    );
  line("tracker.v1.Issue", "PAY-1", {
    key: "PAY-1",
    priority: "PRIORITY_HIGH",
    assignee: "",
    storyPoints: 0.5,
    timeSpentSeconds: "9007199254740993",
    labels: ["b", "a"],
    customFields: { z: "1", a: "2" },
    createdAt: "2024-02-29T12:00:00.123456789Z",
  });
  line("tracker.v1.Issue", "PAY-2", { key: "PAY-2" });

  it("follows the models: enum names, nullif, presence, 64 bits, microseconds", () => {
    const [first, second] = oracle.rows("tracker.issues");
    expect(first).toMatchObject({
      priority: "HIGH",
      status_category: "UNSPECIFIED",
      assignee: null,
      reporter: "",
      story_points: "0.5",
      original_estimate_seconds: null,
      time_spent_seconds: "9007199254740993",
      labels: ["b", "a"],
      custom_fields: [
        ["a", "2"],
        ["z", "1"],
      ],
      created_at: "1709208000123456",
      due_at: null,
    });
    expect(second).toMatchObject({ story_points: null, labels: [], custom_fields: [], comment_count: "0" });
  });

  it("reads a row the same from every kind of reader", () => {
    const [expected] = oracle.rows("tracker.issues");
    const columns = columnsOf("tracker.issues");
    const asJson = columns.map((name) => {
      if (name === "created_at") return "2024-02-29T12:00:00.123456Z";
      if (name === "custom_fields") return { z: "1", a: "2" };
      return expected![name];
    });
    const [record] = recordsOf(columns, [asJson]);
    expect(actualRow("tracker.issues", record!)).toEqual(expected);
    const asDuckDB = {
      ...record,
      labels: { items: ["b", "a"] },
      custom_fields: {
        entries: [
          { key: "a", value: "2" },
          { key: "z", value: "1" },
        ],
      },
      created_at: { micros: 1709208000123456n },
      time_spent_seconds: 9007199254740993n,
      story_points: 0.5,
      hidden: "ignored",
    };
    expect(actualRow("tracker.issues", asDuckDB)).toEqual(expected);
    expect(() => actualRow("tracker.issues", { tenant_id: "t" })).toThrow("entity_id");
  });

  it("has one digest for the same rows in any order, and another for any change", () => {
    const rows = oracle.rows("tracker.issues");
    const digest = oracle.digest("tracker.issues");
    expect(digestOf([...rows].reverse())).toBe(digest);
    for (const name of columnsOf("tracker.issues")) {
      const changed = [{ ...rows[0]!, [name]: "other" }, rows[1]!];
      expect(digestOf(changed), name).not.toBe(digest);
    }
  });

  it("counts per tenant, and drops what a model's filter drops", () => {
    expect(oracle.counts("tracker.issues")).toEqual(new Map([["t", 2]]));
    expect(oracle.rows("tracker.issues", { where: (row) => row.priority === "HIGH" })).toHaveLength(1);
    expect(oracle.rows("tracker.issues", { tenant: "other" })).toEqual([]);
    expect(TABLE_NAMES).toHaveLength(4);
  });

  it("takes whole requests, packed payloads too", () => {
    const from = new Oracle();
    from.applyRequest(
      encodeRequest([
        event({ version: 1, payload: { value: project("PAY", "plain") } }),
        event({ version: 2, operation: 3 }),
        event({ entityId: "Q", version: 1, payload: { value: project("Q", "q") } }),
      ]),
    );
    expect(from.rows("tracker.projects").map((row) => row.name)).toEqual(["q"]);
    expect(from.entityCount).toBe(2);
  });
});
