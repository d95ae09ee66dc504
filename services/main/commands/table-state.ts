import { CODES } from "../../base/codes.js";
import { hasCode, type TributaryError } from "../../base/errors.js";
import { duration, printable } from "../../base/in-words.js";
import { type IngestStatus, readIngestStatus, type TableStatus } from "../../status/ingest-status.js";
import type { ObjectStore } from "../../storage/object-store.js";

/** How a table is doing, as people and programs are told. */
export interface TableState {
  /** `damaged`: this command could not read it; the others are what ingest says. */
  readonly state: "ok" | "quarantined" | "catching-up" | "damaged";
  readonly since?: string;
  readonly code?: string;
  readonly reason?: string;
  readonly remedy?: string;
  readonly attempts?: number;
  readonly nextTryAt?: string;
  readonly parkedBytes?: number;
  readonly held?: boolean;
}

const STALE_MS = 60_000;

/** What ingest last wrote, by the table's name as `table ls` spells it. */
export class LakeState {
  private readonly byName: ReadonlyMap<string, TableStatus>;
  /** When ingest wrote it, ISO 8601; undefined when it never has, or what it wrote cannot be read. */
  readonly writtenAt: string | undefined;

  private constructor(status: IngestStatus | undefined) {
    this.byName = new Map(status?.tables.map((table) => [nameOf(table), table]));
    this.writtenAt = status?.writtenAt;
  }

  /** A status that cannot be read must not hide the tables: it counts as none. */
  static async read(store: ObjectStore): Promise<LakeState> {
    try {
      return new LakeState(await readIngestStatus(store));
    } catch (error) {
      if (hasCode(error, "TRB-STORE-FAILED")) return new LakeState(undefined);
      throw error;
    }
  }

  static readonly unknown = new LakeState(undefined);

  /** True when ingest last wrote so long ago that it cannot be running: it writes now and then without a change, too. */
  isStale(now = Date.now()): boolean {
    return this.writtenAt !== undefined && now - Date.parse(this.writtenAt) > STALE_MS;
  }

  /** Tables that are not well, also those that do not exist yet. */
  get names(): readonly string[] {
    return [...this.byName.keys()];
  }

  /** `failure`: why the table could not be read just now. */
  of(name: string, failure?: TributaryError): TableState {
    const status = this.byName.get(name);
    if (status !== undefined) {
      const { kind: _, name: __, entityType: ___, ...told } = status;
      return Object.fromEntries(
        Object.entries(told).filter(([, v]) => v !== undefined),
      ) as unknown as TableState;
    }
    if (failure === undefined) return { state: "ok" };
    return {
      state: "damaged",
      code: failure.code,
      reason: failure.message,
      remedy: CODES[failure.code].remedy,
    };
  }
}

const nameOf = ({ kind, name }: TableStatus): string => (kind === "raw" ? `raw/${name}` : name);

/** What is known of a table that is not well, in lines for people: since when, why, what to do. */
export function explain(name: string, told: TableState, now = Date.now()): string {
  const lines = [`${name}: ${told.state}${told.since === undefined ? "" : ` since ${told.since}`}`];
  if (told.code !== undefined) lines.push(`${told.code}: ${told.reason ?? ""}`);
  if (told.state === "quarantined") lines.push(tries(told, now));
  if ((told.parkedBytes ?? 0) > 0) {
    const held = told.held ? "; no more fit, so the bus refuses new ones" : "";
    lines.push(`${told.parkedBytes} bytes of its events wait beside the stream${held}`);
  }
  if (told.remedy !== undefined) lines.push(`→ ${told.remedy}`);
  return lines.map((line, at) => (at === 0 ? "" : "  ") + printable(line)).join("\n");
}

function tries({ attempts = 0, nextTryAt }: TableState, now: number): string {
  const left = nextTryAt === undefined ? undefined : Date.parse(nextTryAt) - now;
  const next =
    left === undefined || !(left > 0) ? "the next try is under way or due" : `next try in ${duration(left)}`;
  return `tried ${attempts} ${attempts === 1 ? "time" : "times"}, ${next}`;
}
