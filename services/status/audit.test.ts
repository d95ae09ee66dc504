import { expect, test } from "vitest";
import { openWorkbench } from "../../test/support/tables.js";
import { auditTrail, recordAudit } from "./audit.js";

const { store } = await openWorkbench();

test("what was asked for is told in its order, from any time on; what cannot be read hides nothing", async () => {
  const all = async (since?: string) => {
    const actions: string[] = [];
    for await (const { action } of auditTrail(store, since)) actions.push(action);
    return actions;
  };
  expect(await all()).toEqual([]);
  await recordAudit(store, { by: "ops", via: "http" }, "bootstrap.start", { id: "a", tenant: null });
  await store.put("audit/2999-01-01T000000.000Z-x.json", Buffer.from("{"));
  await new Promise((resolve) => setTimeout(resolve, 5));
  const between = new Date().toISOString();
  await new Promise((resolve) => setTimeout(resolve, 5));
  await recordAudit(store, { by: "local:me", via: "cli" }, "bootstrap.pause", { id: "a" });
  expect(await all()).toEqual(["bootstrap.start", "bootstrap.pause"]);
  expect(await all(between)).toEqual(["bootstrap.pause"]);
  for await (const entry of auditTrail(store)) {
    expect(entry).toMatchObject({ by: "ops", via: "http", about: { id: "a", tenant: null } });
    expect(Date.parse(entry.at)).toBeLessThan(Date.parse(between));
    break;
  }
});
