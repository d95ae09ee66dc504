import { expect, test } from "vitest";
import { openWorkbench } from "../../test/support/tables.js";
import {
  answerRepair,
  askForRepair,
  takeRepairAnswer,
  takeRepairRequests,
  withdrawRepair,
} from "./repair-request.js";

const { store } = await openWorkbench();
const report = { table: "t.things", found: [], done: [], left: [] };

test("a request that nobody took up can be taken back, one that was answered is over", async () => {
  await askForRepair(store, "a", "t.things");
  expect(await withdrawRepair(store, "a")).toBe(true);
  expect(await takeRepairRequests(store)).toEqual([]);
  await askForRepair(store, "b", "t.things");
  expect(await takeRepairRequests(store)).toEqual([{ id: "b", table: "t.things", hopeless: false }]);
  expect(await withdrawRepair(store, "b")).toBe(false);
  await answerRepair(store, "b", { report });
  expect(await takeRepairRequests(store)).toEqual([]);
  expect(await takeRepairAnswer(store, "b")).toEqual({ report });
  expect(await takeRepairAnswer(store, "b")).toBeUndefined();
});

test("what took a request up may die over it: the next one takes it up, but not for ever", async () => {
  await askForRepair(store, "a", "t.things");
  const takes: boolean[] = [];
  for (let i = 0; i < 5; i++) takes.push((await takeRepairRequests(store))[0]!.hopeless);
  expect(takes).toEqual([false, false, false, true, true]);
  await answerRepair(store, "a", { failed: "it ended each time" });
  expect(await takeRepairRequests(store)).toEqual([]);
});

test("what is no request is removed", async () => {
  await store.put("status/repair/requests/x.json", Buffer.from("{"));
  expect(await takeRepairRequests(store)).toEqual([]);
  expect(await store.get("status/repair/requests/x.json")).toBeUndefined();
});
