import { z } from "zod";
import type { ObjectStore } from "../storage/object-store.js";

/**
 * How a command beside a running ingest asks it to repair a table: ingest alone writes tables, so it does the work and
 * leaves the report. One object a request and one an answer, in the lake. A request stays until it is answered: what
 * takes it up may die over it, and the next ingest does what is left, for which a repair may be done twice. The answer
 * is removed by who has read it.
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
const request = z.object({
  table: z.string(),
  /** How often it was taken up. */
  tries: z.number().int().default(0),
});
/** A repair over which ingest has ended so often is not tried again. */
const MOST_TRIES = 3;

export type RepairReport = z.infer<typeof report>;
export type RepairAnswer = z.infer<typeof answer>;

/** Undefined for what is none. */
function requestOf(bytes: Buffer): z.infer<typeof request> | undefined {
  try {
    return request.parse(JSON.parse(bytes.toString("utf8")));
  } catch {
    return undefined;
  }
}

const bytesOf = (value: unknown) => Buffer.from(JSON.stringify(value));

export async function askForRepair(store: ObjectStore, id: string, table: string): Promise<void> {
  await store.put(`${REQUESTS}${id}.json`, bytesOf({ table }));
}

export interface RepairRequest {
  readonly id: string;
  readonly table: string;
  /** Whoever took it up ended over it, again and again: it is to be answered, and no more. */
  readonly hopeless: boolean;
}

/** The requests that are not answered yet, those among them that somebody else took up; for one that asks at a time. */
export async function takeRepairRequests(store: ObjectStore): Promise<RepairRequest[]> {
  const found: RepairRequest[] = [];
  for await (const { key } of store.list(REQUESTS)) {
    const bytes = await store.get(key);
    if (bytes === undefined) continue;
    const asked = requestOf(bytes);
    if (asked === undefined) {
      await store.delete([key]);
      continue;
    }
    const { table, tries } = asked;
    const hopeless = tries === MOST_TRIES;
    if (!hopeless) await store.put(key, bytesOf({ table, tries: tries + 1 }));
    found.push({ id: key.slice(REQUESTS.length, -".json".length), table, hopeless });
  }
  return found;
}

export async function answerRepair(store: ObjectStore, id: string, given: RepairAnswer): Promise<void> {
  await store.put(`${ANSWERS}${id}.json`, bytesOf(given));
  await store.delete([`${REQUESTS}${id}.json`]);
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
  const bytes = await store.get(key);
  if (bytes === undefined || (requestOf(bytes)?.tries ?? 0) > 0) return false;
  await store.delete([key]);
  return true;
}
