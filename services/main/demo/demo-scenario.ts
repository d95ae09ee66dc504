import type { Code } from "../../base/codes.js";
import { TributaryError } from "../../base/errors.js";
import { failureOf, HttpClient } from "../client/http-client.js";
import type { EventBody } from "../workload/generator.js";

/** A question's answer, as a table. */
export interface Answer {
  readonly title: string;
  readonly columns: readonly string[];
  readonly rows: readonly (readonly unknown[])[];
}

/** What the demo publishes, asks and compares. */
export interface Scenario {
  readonly domain: "scm" | "tracker";
  /** One line: what the events are made of. */
  readonly source: string;
  /** The tenants to ask about, the most interesting one first. */
  readonly tenants: readonly string[];
  /** Events to publish; `made` is told how far the source has been read, from 0 to 1. To be read once. */
  bodies(made: (fraction: number) => void): AsyncIterable<EventBody> | Iterable<EventBody>;
  /** A last change, kept back so that its way can be timed; to be asked when all bodies have been read. */
  last(): EventBody | undefined;
  /** Whether all that `bodies` held can be queried, or at least nothing speaks against it. */
  arrived(ask: Ask): Promise<boolean>;
  /** Whether the last change, too, can be queried. */
  settled(ask: Ask): Promise<boolean>;
  answers(ask: Ask): Promise<readonly Answer[]>;
  /** Compares what the lake holds with what the source says. */
  compare(ask: Ask): Promise<Comparison>;
  /** SQL for people to try. */
  readonly example: string;
}

export interface Comparison {
  /** What was compared, such as "live files with git ls-tree". */
  readonly what: string;
  readonly expected: number;
  readonly found: number;
  /** Differences in words, the first ones; none when both are the same. */
  readonly differences: readonly string[];
}

/** Asks one tenant's tables; int64 values come as text. Errors: the server's code. */
export type Ask = (tenant: string, sql: string) => Promise<readonly (readonly unknown[])[]>;

/** Failures that pass while a table's first rows are on their way. */
const PASSING: ReadonlySet<Code> = new Set<Code>(["TRB-QUERY-TABLE", "TRB-QUERY-BUSY", "TRB-QUERY-TIMEOUT"]);

export class Analyst {
  private readonly client: HttpClient;

  constructor(url: string, token: string) {
    this.client = new HttpClient({ url, token, connections: 1 });
  }

  readonly ask: Ask = async (tenant, sql) => {
    const body = Buffer.from(JSON.stringify({ sql, tenant }));
    const answer = await this.client.post("/v1/query", "application/json", body, "application/json");
    if (answer.status !== 200) throw failureOf(answer);
    return (JSON.parse(answer.body.toString("utf8")) as { rows: unknown[][] }).rows;
  };

  close(): void {
    this.client.close();
  }
}

/** Whether `question` is answered with yes; no while a table is not there yet. */
export async function holds(question: () => Promise<boolean>): Promise<boolean> {
  try {
    return await question();
  } catch (error) {
    if (error instanceof TributaryError && PASSING.has(error.code)) return false;
    throw error;
  }
}

/** A sum or count as an answer holds it: text, number, or null for the sum of nothing. */
export const bigintOf = (value: unknown): bigint => BigInt(String(value ?? 0));

/** Differences between two sets of names, the first few in words. */
export function differences(expected: Iterable<string>, found: Iterable<string>): string[] {
  const wanted = new Set(expected);
  const there = new Set<string>();
  const result: string[] = [];
  for (const name of found) {
    if (there.has(name)) result.push(`twice: ${name}`);
    else if (!wanted.has(name)) result.push(`should not be there: ${name}`);
    there.add(name);
  }
  for (const name of wanted) if (!there.has(name)) result.push(`missing: ${name}`);
  return result;
}
