import { z } from "zod";
import type { ObjectStore } from "../storage/object-store.js";

/**
 * How a command beside a running ingest asks it to repair a table: ingest alone writes tables, so it does the work and
 * leaves the report. One object a request and one an answer, in the lake; both are removed by whoever has read them.
 */
const REQUESTS = "status/repair/requests/";
const ANSWERS = "status/repair/answers/";

const report = z.object({
  table: z.string(),
  /** What is wrong, in words; empty when nothing is. */
  found: z.array(z.string()),
  /** What was done about it, or would be (`--dry-run`). */
  done: z.array(z.string()),
  /** What cannot be mended without loss, and how to restore it. */
  left: z.array(z.string()),
});
const answer = z.union([z.object({ report }), z.object({ failed: z.string() })]);
const request = z.object({ table: z.string() });

export type RepairReport = z.infer<typeof report>;
export type RepairAnswer = z.infer<typeof answer>;

const bytesOf = (value: unknown) => Buffer.from(JSON.stringify(value));

export async function askForRepair(store: ObjectStore, id: string, table: string): Promise<void> {
  await store.put(`${REQUESTS}${id}.json`, bytesOf({ table }));
}

/** The requests that wait; each is told once. */
export async function takeRepairRequests(
  store: ObjectStore,
): Promise<{ readonly id: string; readonly table: string }[]> {
  const found: { id: string; table: string }[] = [];
  for await (const { key } of store.list(REQUESTS)) {
    const bytes = await store.get(key);
    await store.delete([key]);
    const parsed = request.safeParse(bytes === undefined ? undefined : JSON.parse(bytes.toString("utf8")));
    if (parsed.success) found.push({ id: key.slice(REQUESTS.length, -".json".length), ...parsed.data });
  }
  return found;
}

export async function answerRepair(store: ObjectStore, id: string, given: RepairAnswer): Promise<void> {
  await store.put(`${ANSWERS}${id}.json`, bytesOf(given));
}

/** Undefined while there is none; an answer is read once. */
export async function takeRepairAnswer(store: ObjectStore, id: string): Promise<RepairAnswer | undefined> {
  const key = `${ANSWERS}${id}.json`;
  const bytes = await store.get(key);
  if (bytes === undefined) return undefined;
  await store.delete([key]);
  return answer.parse(JSON.parse(bytes.toString("utf8")));
}

/** Takes a request back; false when somebody has taken it up. */
export async function withdrawRepair(store: ObjectStore, id: string): Promise<boolean> {
  const key = `${REQUESTS}${id}.json`;
  const waits = (await store.get(key)) !== undefined;
  await store.delete([key]);
  return waits;
}
