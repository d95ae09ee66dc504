import { expect, test } from "vitest";
import { openWorkbench } from "../../test/support/tables.js";
import { audit, auditOf, auditTrail } from "./audit-log.js";

const { store } = await openWorkbench();

test("what was asked for is told in its order, of one tenant or all, from any time on; what cannot be read hides nothing", async () => {
  const all = async (since?: string) => {
    const actions: string[] = [];
    for await (const { action } of auditTrail(store, since)) actions.push(action);
    return actions;
  };
  expect(await all()).toEqual([]);
  const at = (second: number) => `2026-01-02T03:04:0${second}.500Z`;
  await audit(store, { at: at(3), by: "ops", action: "bootstrap start", job: "a", tenant: "acme" });
  await audit(store, { at: at(1), by: "local:me", action: "raw show", tenant: "zeta", entityId: "i" });
  await audit(store, { at: at(2), by: "ops", action: "bootstrap pause", job: "b" });
  await store.put("audit/acme/20990102T030405000Z-x.json", Buffer.from("{"));
  expect(await all()).toEqual(["raw show", "bootstrap pause", "bootstrap start"]);
  expect(await all("2026-01-02T03:04:02.000Z")).toEqual(["bootstrap pause", "bootstrap start"]);
  for await (const entry of auditOf(store, "acme")) {
    expect(entry).toEqual({ at: at(3), by: "ops", action: "bootstrap start", job: "a", tenant: "acme" });
  }
});
