import { randomUUID } from "node:crypto";
import type { DuckDBConnection } from "@duckdb/node-api";
import { z } from "zod";
import { isOutOfMemory } from "../base/engine-error.js";
import { compactUpserted } from "../table/compact.js";
import type { TableSpec } from "../table/definition.js";
import { DeltaTable } from "../table/delta-table.js";
import { replaceTable } from "../table/replace.js";
import type { TableSnapshot } from "../table/types.js";
import type { UpsertWriter } from "../table/upsert.js";
import { verifyTable } from "../table/verify.js";
import { CatchUp } from "./catch-up.js";
import type { IngestContext } from "./context.js";
import type { Crew } from "./crew.js";
import type { Refiner } from "./refine.js";
import { fingerprintOf, refinedSpec } from "./refined-table.js";

/** The table's own note of rebuilds, so that a crash neither hides one from its successor nor leaves rubbish behind. */
const DOMAIN = "tributary.rebuild";

const noteShape = z.object({
  /** The rebuild under way: the folder it grows in, and the model it is for. */
  building: z.object({ folder: z.string(), fingerprint: z.string() }).optional(),
  /** Folders that have served; `files` says that nothing in them is the table's. */
  leftovers: z.array(z.object({ folder: z.string(), files: z.boolean() })),
  /** Fingerprints of models that another has taken the table over from, the last one last. */
  superseded: z.array(z.string()).default([]),
});
type Note = z.infer<typeof noteShape>;

/**
 * Builds a table anew from raw, beside the old one and inside its folder, then takes the new files over in one commit:
 * queries see the old table or the new one. Goes on where a crashed rebuild of the same model stopped, if what that
 * left is whole; else begins in a folder of its own, so that nothing left over is ever in the way.
 */
export class Rebuild {
  constructor(
    private readonly context: IngestContext,
    private readonly table: DeltaTable,
    private readonly refiner: Refiner,
    private readonly connection: DuckDBConnection,
    /** Gives up; the next rebuild of the same model goes on where this one stopped. */
    private readonly signal: AbortSignal,
  ) {}

  async run(raw: DeltaTable): Promise<void> {
    const { context } = this;
    const { name, fingerprint } = this.refiner.model;
    const spec = await refinedSpec(this.connection, this.refiner.model);
    const { side, folder } = await this.begin();
    try {
      if (await this.fill(side, folder, raw, spec)) context.log.info({ model: name, fingerprint }, "rebuilt");
    } finally {
      // What is left of the folder is removed next.
      await side.settled();
    }
  }

  /** False when another worker has ended it. */
  private async fill(side: DeltaTable, folder: string, raw: DeltaTable, spec: TableSpec): Promise<boolean> {
    const { context, table } = this;
    context.log.info({ model: this.refiner.model.name }, "rebuilding from raw");
    const writer = context.writerFor(side, this.refiner.model.entityType);
    const options = {
      express: false,
      between: () => this.compact(writer),
      isOurs: () => true,
      signal: this.signal,
    };
    for (;;) {
      await new CatchUp(context, this.refiner, writer, raw, options).run();
      const old = await table.refresh();
      const note = noteOf(old);
      if (note.building?.folder !== folder) return false;
      const next: Note = {
        leftovers: [...note.leftovers, { folder, files: false }],
        superseded: superseded(note, fingerprintOf(old), this.refiner.model.fingerprint),
      };
      const result = await replaceTable(table, side, folder, spec, change(old, next));
      if (result.kind === "committed") return true;
    }
  }

  /** The side table to go on with. */
  private async begin(): Promise<{ side: DeltaTable; folder: string }> {
    const { store, duck, tableOptions } = this.context;
    const { fingerprint } = this.refiner.model;
    for (;;) {
      const snapshot = await this.table.refresh();
      const note = noteOf(snapshot);
      if (note.building?.fingerprint === fingerprint) {
        const { folder } = note.building;
        const side = await this.resumed(folder);
        if (side !== undefined) return { side, folder };
      }
      const folder = `rebuilt-${fingerprint.slice(0, 12)}-${randomUUID().slice(0, 8)}`;
      const dropped = note.building === undefined ? [] : [{ folder: note.building.folder, files: true }];
      const leftovers = [...note.leftovers, ...dropped];
      const next: Note = { ...note, building: { folder, fingerprint }, leftovers };
      if (!(await this.commit(snapshot, next))) continue;
      const spec = await refinedSpec(this.connection, this.refiner.model);
      const root = `${this.table.root}/${folder}`;
      return { side: await DeltaTable.openOrCreate(store, root, duck, tableOptions, spec), folder };
    }
  }

  /** What a rebuild that did not end has built so far; undefined when it is not whole. */
  private async resumed(folder: string): Promise<DeltaTable | undefined> {
    const { store, duck, tableOptions, log } = this.context;
    try {
      const spec = await refinedSpec(this.connection, this.refiner.model);
      const root = `${this.table.root}/${folder}`;
      const side = await DeltaTable.openOrCreate(store, root, duck, tableOptions, spec);
      const { problems } = await verifyTable(side);
      if (problems.length === 0) return side;
      log.warn({ model: this.refiner.model.name, problems: problems.length }, "a rebuild begins anew");
    } catch (error) {
      log.warn({ err: error, model: this.refiner.model.name }, "a rebuild begins anew");
    }
    return undefined;
  }

  private async compact(writer: UpsertWriter): Promise<void> {
    const { duck, planner, log } = this.context;
    if (!planner.wants(writer.table)) return;
    try {
      await duck.with((connection) =>
        planner.compact(writer.table, connection, (files) => compactUpserted(writer, connection, files)),
      );
    } catch (error) {
      if (!isOutOfMemory(error)) throw error;
      // The rebuild can do without; fewer files are merged the next time.
      log.warn({ err: error, model: this.refiner.model.name }, "compaction of a rebuild failed");
    }
  }

  /** Removes what earlier rebuilds have left; what does not go stays noted and is tried again the next time. */
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
        log.warn({ err: error, model: this.refiner.model.name }, "leftovers of a rebuild were not removed");
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
  const empty = note.building === undefined && note.leftovers.length + note.superseded.length === 0;
  const configuration = empty ? "" : JSON.stringify(note);
  return {
    actions: [{ domainMetadata: { domain: DOMAIN, configuration, removed: empty } }],
    expect: new Map([[DOMAIN, snapshot.domains.get(DOMAIN)]]),
  };
}
