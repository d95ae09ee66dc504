import { randomUUID } from "node:crypto";
import type { DuckDBConnection } from "@duckdb/node-api";
import { z } from "zod";
import { isOutOfMemory } from "../base/engine-error.js";
import { TributaryError } from "../base/errors.js";
import type { BoundModel } from "../models/bind.js";
import type { Action } from "../table/actions.js";
import { compactUpserted } from "../table/compact.js";
import { DeltaTable } from "../table/delta-table.js";
import type { TableSnapshot } from "../table/types.js";
import type { UpsertWriter } from "../table/upsert.js";
import { verifyTable } from "../table/verify.js";
import type { IngestContext } from "./context.js";
import type { Crew } from "./crew.js";
import { fingerprintOf, isOf, refinedSpec } from "./refined-table.js";

/** The table's own note of rebuilds, so that a crash neither hides one from its successor nor leaves rubbish behind. */
const DOMAIN = "tributary.rebuild";

const noteShape = z.object({
  /** What is under way: the folder it grows in, the model it is for, and the job, where it is not ingest's own. */
  building: z
    .object({
      folder: z.string(),
      fingerprint: z.string(),
      job: z.string().optional(),
      tenant: z.string().optional(),
    })
    .optional(),
  /** The last job whose side table was taken over. */
  taken: z.string().optional(),
  /** Folders that have served; `files` says that nothing in them is the table's. */
  leftovers: z.array(z.object({ folder: z.string(), files: z.boolean() })),
  /** Fingerprints of models that another has taken the table over from, the last one last. */
  superseded: z.array(z.string()).default([]),
});
type Note = z.infer<typeof noteShape>;

/** A table that grows beside another one, in a folder of it. */
export interface SideTable {
  readonly table: DeltaTable;
  readonly folder: string;
  /** It holds nothing of others; all tenants' when absent. */
  readonly tenant?: string | undefined;
  /** Nothing has been taken into it yet. */
  readonly isNew: boolean;
}

/** For whom a side table is made, other than for ingest itself, which comes first. */
export interface SideJob {
  readonly id: string;
  /** What is built is of this one alone. */
  readonly tenant?: string;
  /** Whether another job needs its side table no more. */
  isOver(job: string): Promise<boolean>;
}

/** A commit's part that says what has become of a side table. */
export interface NoteChange {
  readonly actions: readonly Action[];
  readonly expect: ReadonlyMap<string, string | undefined>;
}

/** What is built beside a table of a model, one at a time. */
export class SideTables {
  constructor(
    private readonly context: IngestContext,
    private readonly table: DeltaTable,
    private readonly model: BoundModel,
    private readonly connection: DuckDBConnection,
  ) {}

  /**
   * The side table to go on with: what a build for the same model and job has left, if that is whole, else a new one in
   * a folder of its own, so that nothing left over is ever in the way. Errors: TRB-REPLAY-BUSY, for a job.
   */
  async begin(job?: SideJob): Promise<SideTable> {
    const { fingerprint } = this.model;
    for (;;) {
      const snapshot = await this.table.refresh();
      const note = noteOf(snapshot);
      const { building } = note;
      if (building?.fingerprint === fingerprint && building.job === job?.id) {
        const table = await this.resumed(building.folder);
        if (table !== undefined) return { ...building, table, isNew: false };
      } else if (building !== undefined && job !== undefined && !(await this.gives(snapshot, building, job)))
        throw new TributaryError("TRB-REPLAY-BUSY");
      const folder = `rebuilt-${fingerprint.slice(0, 12)}-${randomUUID().slice(0, 8)}`;
      const dropped = building === undefined ? [] : [{ folder: building.folder, files: true }];
      const leftovers = [...note.leftovers, ...dropped];
      const of = { folder, fingerprint, ...(job === undefined ? {} : { job: job.id, tenant: job.tenant }) };
      if (!(await this.commit(snapshot, { ...note, building: of, leftovers }))) continue;
      return { ...of, table: await this.open(folder), isNew: true };
    }
  }

  /**
   * What is under way for the same model, by whomever, as of the table's present snapshot. Errors: TRB-MODEL-INVALID for
   * another model's.
   */
  underWay(): Pick<SideTable, "folder" | "tenant"> | undefined {
    const { building } = noteOf(this.table.snapshot);
    const { name, fingerprint } = this.model;
    if (building === undefined || building.fingerprint === fingerprint) return building;
    throw new TributaryError(
      "TRB-MODEL-INVALID",
      `${name}: its table is being built anew for a changed model; try again once that is over. What nobody goes on with, a replay of the model ends`,
    );
  }

  /** Whether what is under way gives way to a job. */
  private async gives(
    snapshot: TableSnapshot,
    { fingerprint, job }: NonNullable<Note["building"]>,
    by: SideJob,
  ): Promise<boolean> {
    if (job !== undefined) return job === by.id || by.isOver(job);
    return isOf(snapshot, this.model) && !this.context.crew.runs(fingerprint);
  }

  /** As a build that is under way does. */
  async open(folder: string): Promise<DeltaTable> {
    const { store, duck, tableOptions } = this.context;
    const spec = await refinedSpec(this.connection, this.model);
    return DeltaTable.openOrCreate(store, `${this.table.root}/${folder}`, duck, tableOptions, spec);
  }

  /** What a build that did not end has built so far; undefined when it is not whole. */
  private async resumed(folder: string): Promise<DeltaTable | undefined> {
    const { log } = this.context;
    try {
      const side = await this.open(folder);
      const { problems } = await verifyTable(side);
      if (problems.length === 0) return side;
      log.warn({ model: this.model.name, problems: problems.length }, "a rebuild begins anew");
    } catch (error) {
      log.warn({ err: error, model: this.model.name }, "a rebuild begins anew");
    }
    return undefined;
  }

  /**
   * For the commit by which the table, as of its present snapshot, takes over the files of a side table. Undefined when
   * somebody else has ended that.
   */
  takenOver({ folder }: SideTable): NoteChange | undefined {
    const { snapshot } = this.table;
    const { building, taken, ...note } = noteOf(snapshot);
    if (building?.folder !== folder) return undefined;
    const job = building.job ?? taken;
    return change(snapshot, {
      ...(job === undefined ? {} : { taken: job }),
      leftovers: [...note.leftovers, { folder, files: false }],
      superseded: superseded(note, fingerprintOf(snapshot), this.model.fingerprint),
    });
  }

  /** Whether the job's side table was the last that was taken over, as of the table's present snapshot. */
  hasTaken(job: string): boolean {
    return noteOf(this.table.snapshot).taken === job;
  }

  /** Gives a side table up whose files nobody takes over. */
  async drop({ folder }: Pick<SideTable, "folder">): Promise<void> {
    for (;;) {
      const snapshot = await this.table.refresh();
      const { building, ...note } = noteOf(snapshot);
      if (building?.folder !== folder) return;
      const leftovers = [...note.leftovers, { folder, files: true }];
      if (await this.commit(snapshot, { ...note, leftovers })) return;
    }
  }

  /** Gives up and removes what one of these jobs was building, which are over and never go on. */
  async giveUp(jobs: ReadonlySet<string>): Promise<void> {
    const { building } = noteOf(await this.table.refresh());
    if (building?.job === undefined || !jobs.has(building.job)) return;
    await this.drop(building);
    await this.clean();
  }

  /** Keeps a side table's files few. */
  async compact(writer: UpsertWriter): Promise<void> {
    const { duck, planner, log } = this.context;
    if (!planner.wants(writer.table)) return;
    try {
      await duck.with((connection) =>
        planner.compact(writer.table, connection, (files) => compactUpserted(writer, connection, files)),
      );
    } catch (error) {
      if (!isOutOfMemory(error)) throw error;
      // The rebuild can do without; fewer files are merged the next time.
      log.warn({ err: error, model: this.model.name }, "compaction of a rebuild failed");
    }
  }

  /** Removes what earlier builds have left; what does not go stays noted and is tried again the next time. */
  async clean(): Promise<void> {
    const { store, log } = this.context;
    const snapshot = await this.table.refresh();
    const note = noteOf(snapshot);
    if (note.leftovers.length === 0) return;
    const left: Note["leftovers"] = [];
    for (const leftover of note.leftovers) {
      const folder = `${this.table.root}/${leftover.folder}/`;
      try {
        const keys: string[] = [];
        for await (const { key } of store.list(leftover.files ? folder : `${folder}_delta_log/`))
          keys.push(key);
        await store.delete(keys);
      } catch (error) {
        log.warn({ err: error, model: this.model.name }, "leftovers of a rebuild were not removed");
        left.push(leftover);
      }
    }
    if (left.length < note.leftovers.length) await this.commit(snapshot, { ...note, leftovers: left });
  }

  private async commit(snapshot: TableSnapshot, note: Note): Promise<boolean> {
    const result = await this.table.commit({
      operation: "SET DOMAIN",
      ...change(snapshot, note),
      basedOn: snapshot.version,
      serializable: false,
    });
    return result.kind === "committed";
  }
}

const MOST_SUPERSEDED = 20;

function superseded({ superseded: before }: Note, old: string | undefined, now: string): string[] {
  const others = before.filter((fingerprint) => fingerprint !== now && fingerprint !== old);
  return (old === undefined || old === now ? others : [...others, old]).slice(-MOST_SUPERSEDED);
}

/**
 * The fingerprint of another model that this one gives way to: of the table as it is now, where that one has taken it
 * over from ours, or of a rebuild that has begun; as long as somebody runs it. So two releases beside each other never
 * build a table anew in turns, and going back to the older one works once nobody runs the newer one.
 */
export function givesWayTo(snapshot: TableSnapshot, fingerprint: string, crew: Pick<Crew, "runs">): boolean {
  const note = noteOf(snapshot);
  const inForce = fingerprintOf(snapshot);
  const building = note.building?.fingerprint;
  const isNewer = inForce !== undefined && note.superseded.includes(fingerprint) && crew.runs(inForce);
  return isNewer || (building !== undefined && building !== fingerprint && crew.runs(building));
}

function noteOf({ domains }: Pick<TableSnapshot, "domains">): Note {
  const configuration = domains.get(DOMAIN);
  return configuration === undefined
    ? { leftovers: [], superseded: [] }
    : noteShape.parse(JSON.parse(configuration));
}

/** Replaces the note that stands in the snapshot. */
function change(snapshot: TableSnapshot, note: Note) {
  const { building, taken } = note;
  const empty =
    building === undefined && taken === undefined && note.leftovers.length + note.superseded.length === 0;
  const configuration = empty ? "" : JSON.stringify(note);
  return {
    actions: [{ domainMetadata: { domain: DOMAIN, configuration, removed: empty } }],
    expect: new Map([[DOMAIN, snapshot.domains.get(DOMAIN)]]),
  };
}
