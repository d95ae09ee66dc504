import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { packageRoot } from "../base/paths.js";
import { ProtoRegistry } from "../contracts/registry.js";
import { CheckedMapping, type Mapping, mappingShape } from "./mapping.js";

const type = ProtoRegistry.load([join(packageRoot, "proto")]).entityType("tracker.v1.Project")!;
const columns = [
  { name: "customer", type: "VARCHAR" },
  { name: "key", type: "VARCHAR" },
  { name: "name", type: "VARCHAR" },
  { name: "rev", type: "BIGINT" },
  { name: "after", type: "STRUCT(lead VARCHAR)" },
  { name: 'od"d.name', type: "VARCHAR" },
];
const base: Mapping = { tenant: "customer", entityId: "key", version: "rev" };
const checked = (mapping: unknown) => new CheckedMapping(mappingShape.parse(mapping), columns, type);

test("values come from columns, fields of columns, constants and paths", () => {
  const mapping = checked({
    tenant: { path: "^tenant=([^/]+)/" },
    entityId: 'od"d.name',
    version: { constant: 0 },
    occurredAt: "after.lead",
    payload: { key: "key", name: { constant: "it's" } },
  });
  expect(mapping.of("tenant=o'neill/part-1.parquet")).toEqual({
    tenant: "'o''neill'",
    entityId: '"od""d.name"',
    version: "0",
    occurredAt: '"after"."lead"',
    payload: { key: '"key"', name: "'it''s'" },
  });
  expect(() => mapping.of("other/part-1.parquet")).toThrow("tenant: expected something in the file's path");
  expect(mapping.leftover.columns).toEqual(["customer", "name", "rev"]);
});

test("a payload that is not mentioned is made of columns named as its fields", () => {
  const mapping = checked(base);
  expect(mapping.of("x")).toMatchObject({ occurredAt: "NULL", payload: { key: '"key"', name: '"name"' } });
  expect(mapping.leftover.fields).not.toContain("key");
  expect(mapping.leftover.columns).toEqual(["after", 'od"d.name']);
});

describe("what does not fit is named", () => {
  test.each([
    [{ ...base, tenant: "nobody" }, 'tenant: expected a column of the source, not "nobody"'],
    [{ ...base, version: "rev.low" }, 'version: expected a column with fields, not "rev" of type BIGINT'],
    [{ ...base, payload: { keys: "key" } }, "payload.keys: expected a field of tracker.v1.Project"],
    [{ ...base, payload: { key: "no" } }, 'payload.key: expected a column of the source, not "no"'],
    [{ ...base, tenant: { path: "tenant=" } }, "path: expected a regular expression with one group"],
    [{ ...base, tenant: { path: "(" } }, "path: expected a regular expression with one group"],
    [{ ...base, tenant: { path: "(a)(b)" } }, "path: expected a regular expression with one group"],
  ])("%j", (mapping, message) => {
    expect(() => checked(mapping)).toThrow(expect.objectContaining({ code: "TRB-BULK-MAPPING", message }));
  });

  test("columns of no field's name", () => {
    const nothing = () =>
      new CheckedMapping(
        base,
        columns.slice(0, 1).concat(columns.slice(3, 4), [{ name: "KEY", type: "VARCHAR" }]),
        type,
      );
    expect(nothing).toThrow(/payload: expected columns named as fields|entityId/);
  });
});
