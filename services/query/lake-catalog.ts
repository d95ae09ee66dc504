import type { Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { BoundModel } from "../models/bind.js";
import { readIngestStatus, type TableStatus } from "../status/ingest-status.js";
import type { ObjectInfo, ObjectStore } from "../storage/object-store.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import type { Streams } from "../stream/domains.js";
import { commitKey } from "../table/actions.js";
import { DeltaTable, type TableOptions } from "../table/delta-table.js";
import { positionsOf } from "../table/progress.js";
import { withScan } from "../table/scan.js";
import { deltaTypeOf, duckTypeOf } from "../table/schema.js";
import type { Column, TableSnapshot } from "../table/types.js";
import { type Catalog, type CatalogTable, emptySql, type TableState } from "./catalog.js";
import { lookForWaiting, type TableProgress, type Waiting } from "./waiting-events.js";

type LookedAt = Pick<ChangeStreamReader, "name" | "waiting">;

export interface LakeCatalogOptions {
  readonly store: ObjectStore;
  readonly duck: Duck;
  readonly table: TableOptions;
  readonly streams: Streams<LookedAt>;
  /** Whose low-water record says what has landed. */
  readonly consumer: string;
  /** The project's models as of now. */
  readonly models: () => readonly BoundModel[];
}

interface Opened {
  readonly table: DeltaTable;
  /** The newest commit when it was opened: the log is that very one for as long as this is there. */
  readonly key: string;
  readonly commit: ObjectInfo | undefined;
}

/** Milliseconds after which it is tried again to open a table that could not be: every query would pay for the attempt. */
const AGAIN_MS = 1000;

/** Milliseconds for which one look at the stream answers all that ask. */
const LOOK_MS = 100;

interface Look {
  readonly at: number;
  readonly found: Promise<Waiting>;
  running: boolean;
  /** What those share who have asked since, while it ran. */
  next: Promise<Waiting> | undefined;
}

const NOTHING_KNOWN: Waiting = { complete: false, oldest: () => undefined };

const REMEDIES: Readonly<Record<TableStatus["state"], string>> = {
  quarantined:
    "rows are as of some time ago and stay so until the operator mends the table (tributary table ls)",
  "catching-up": "rows are as of some time ago; wait until the table has caught up",
};

/**
 * The models of the project as queries see them: whatever was committed before a question is in its answer. A model
 * without a table yet is an empty relation, so that nothing tells whether another tenant has rows (I5). A table that
 * cannot be read fails the queries that read it, and no other.
 */
export class LakeCatalog implements Catalog {
  private readonly open = new Map<string, Opened>();
  /** Why tables could not be opened, by root. */
  private readonly shut = new Map<string, { at: number; error: unknown }>();
  private readonly columns = new WeakMap<BoundModel, Promise<readonly Column[]>>();
  /** The last look at each stream, by its name. */
  private readonly looks = new Map<string, Look>();

  constructor(private readonly options: LakeCatalogOptions) {}

  async tables(): Promise<CatalogTable[]> {
    const progress: TableProgress[] = [];
    return Promise.all(this.options.models().map((model) => this.table(model, progress)));
  }

  /** By name; tables that are well are not in it. */
  async states(): Promise<ReadonlyMap<string, TableState>> {
    const status = await readIngestStatus(this.options.store);
    const states = new Map<string, TableState>();
    for (const model of this.options.models()) {
      const about = (status?.tables ?? []).filter(
        ({ kind, name, entityType }) =>
          (kind === "model" && name === model.name) || (kind === "raw" && entityType === model.entityType),
      );
      // What holds up the table most; of what is known, only what says nothing of raw tables.
      const worst = about.find(({ state }) => state === "quarantined") ?? about[0];
      if (worst === undefined) continue;
      const { state, since, code } = worst;
      states.set(model.name, { state, since, code, remedy: REMEDIES[state] });
    }
    return states;
  }

  private async table(model: BoundModel, progress: TableProgress[]): Promise<CatalogTable> {
    const columns = await this.columnsOf(model);
    const { name, domain, entityType } = model;
    let found: { readonly table: DeltaTable; readonly snapshot: TableSnapshot } | undefined;
    let failure: unknown;
    try {
      found = await this.snapshot(model);
    } catch (error) {
      failure = error;
    }
    const stream = this.streamOf(entityType);
    progress.push({
      name,
      entityType,
      positions:
        found === undefined || stream === undefined ? new Map() : positionsOf(found.snapshot, stream.name),
    });
    const described = new Map(columns.map((column) => [column.name, column.description]));
    const served =
      // The table of an older version of the model keeps its own columns until its successor takes its place.
      found?.snapshot.columns.map(({ description: _, ...column }): Column => {
        const description = described.get(column.name);
        return description === undefined ? column : { ...column, description };
      }) ?? columns;
    return {
      domain,
      model: model.table,
      columns: served,
      description: model.description,
      version: found?.snapshot.version ?? 0,
      freshness: (tenant) =>
        failure === undefined ? this.freshness(tenant, model, progress) : Promise.resolve(null),
      withRows: async (names, tenant, use) => {
        if (found === undefined && failure === undefined) return use(emptySql({ columns: served }, names));
        let lent = false;
        try {
          if (found === undefined) throw failure;
          return await withScan(found.table, found.snapshot, { columns: names, tenant }, (sql) => {
            lent = true;
            return use(sql);
          });
        } catch (error) {
          throw lent ? error : unreadable(`${domain}.${model.table}`, error);
        }
      },
    };
  }

  private async snapshot({ domain, table: name }: BoundModel) {
    const { store } = this.options;
    const root = `refined/${domain}/${name}`;
    for (;;) {
      const opened = this.open.get(root) ?? (await this.tryToOpen(root));
      if (opened === undefined) return undefined;
      const { table, key, commit } = opened;
      const refreshed = table.refresh();
      const [there] = await Promise.all([store.stat(key), refreshed.catch(() => undefined)]);
      if (isSame(commit, there)) return { table, snapshot: await refreshed };
      // A repair has set the log aside: what is known here is of another table than the one that was made since.
      if (this.open.get(root) === opened) this.open.delete(root);
    }
  }

  private async tryToOpen(root: string): Promise<Opened | undefined> {
    const shut = this.shut.get(root);
    if (shut !== undefined && performance.now() - shut.at < AGAIN_MS) throw shut.error;
    // Nor do those pay that ask meanwhile.
    if (shut !== undefined) shut.at = performance.now();
    try {
      const opened = await this.openAt(root);
      this.shut.delete(root);
      return opened;
    } catch (error) {
      this.shut.set(root, { at: performance.now(), error });
      throw error;
    }
  }

  private async openAt(root: string): Promise<Opened | undefined> {
    const { store, duck, table: options } = this.options;
    const table = await DeltaTable.open(store, root, duck, options);
    if (table === undefined) return undefined;
    const key = commitKey(root, table.snapshot.version);
    const opened = { table, key, commit: await store.stat(key) };
    this.open.set(root, opened);
    return opened;
  }

  private streamOf(entityType: string) {
    const { streams } = this.options;
    return streams.stream(streams.nameOf(entityType));
  }

  /** The model's columns as its table will have them: as the lake spells their types. */
  private columnsOf(model: BoundModel): Promise<readonly Column[]> {
    let columns = this.columns.get(model);
    if (columns === undefined) {
      columns = this.options.duck.with(async (connection) => {
        const nulls = model.columns.map(({ type }, at) => `NULL::${type} AS c${at}`);
        const types = (await connection.run(`SELECT ${nulls.join(", ")}`)).columnTypes();
        return model.columns.map(({ name, type, description }, at): Column => {
          const delta = deltaTypeOf(types[at]!);
          const spelled = delta === undefined ? type : duckTypeOf(delta);
          return description === undefined ? { name, type: spelled } : { name, type: spelled, description };
        });
      });
      this.columns.set(model, columns);
    }
    return columns;
  }

  private async freshness(
    tenant: string,
    { name: table, entityType }: BoundModel,
    progress: readonly TableProgress[],
  ): Promise<number | null> {
    const now = Date.now();
    const stream = this.streamOf(entityType);
    if (stream === undefined) return null;
    const own = progress.filter((one) => this.streamOf(one.entityType) === stream);
    const waiting = await this.look(stream, own);
    const oldest = waiting.oldest(tenant, table);
    if (oldest !== undefined) return Math.max(0, Math.round(now - oldest));
    return waiting.complete ? 0 : null;
  }

  /** One at a time: a look takes memory, and of a stream that is slow what ingest needs to read it. */
  private look(stream: LookedAt, own: readonly TableProgress[]): Promise<Waiting> {
    const last = this.looks.get(stream.name);
    if (last === undefined) return this.lookNow(stream, own);
    if (Date.now() - last.at < LOOK_MS) return last.found;
    // It may not have seen what has come since it began.
    if (last.running) last.next ??= last.found.then(() => this.lookNow(stream, own));
    return last.next ?? this.lookNow(stream, own);
  }

  private lookNow(stream: LookedAt, own: readonly TableProgress[]): Promise<Waiting> {
    const found = lookForWaiting(stream, this.options.consumer, own)
      // Of a stream that cannot be read now, its writer and ingest tell.
      .catch(() => NOTHING_KNOWN)
      .finally(() => {
        look.running = false;
      });
    const look: Look = { at: Date.now(), found, running: true, next: undefined };
    this.looks.set(stream.name, look);
    return found;
  }
}

const isSame = (a: ObjectInfo | undefined, b: ObjectInfo | undefined): boolean =>
  a?.modifiedAt === b?.modifiedAt && a?.bytes === b?.bytes;

const unreadable = (name: string, cause: unknown): TributaryError =>
  new TributaryError("TRB-QUERY-UNREADABLE", `${name}: the table cannot be read now`, { cause });
