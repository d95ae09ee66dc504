import type { Duck } from "../../base/duckdb.js";
import type { Catalog, CatalogTable } from "../../query/catalog.js";
import type { ObjectStore } from "../../storage/object-store.js";
import { DeltaTable, type TableOptions } from "../../table/delta-table.js";
import { receivedAt } from "../../table/progress.js";
import { scanSql } from "../../table/scan.js";

/** The refined tables of a lake as queries see them: whatever was committed before a question is in its answer. */
export class LakeCatalog implements Catalog {
  private readonly open = new Map<string, DeltaTable>();

  constructor(
    private readonly store: ObjectStore,
    private readonly duck: Duck,
    private readonly options: TableOptions,
    /** Whether accepted events wait to be landed. */
    private readonly eventsWait: () => Promise<boolean>,
    /** The project's models, as they are now. */
    private readonly models: () => readonly { readonly domain: string; readonly table: string }[],
  ) {}

  async tables(): Promise<CatalogTable[]> {
    const found = await Promise.all(this.models().map((model) => this.table(model.domain, model.table)));
    return found.filter((table) => table !== undefined);
  }

  private async table(domain: string, model: string): Promise<CatalogTable | undefined> {
    const root = `refined/${domain}/${model}`;
    let table = this.open.get(root);
    if (table === undefined) {
      table = await DeltaTable.open(this.store, root, this.duck, this.options);
      // A model without a table has had no event yet.
      if (table === undefined) return undefined;
      this.open.set(root, table);
    }
    const opened = table;
    const snapshot = await opened.refresh();
    return {
      domain,
      model,
      columns: snapshot.columns,
      description: snapshot.description,
      version: snapshot.version,
      freshness: () => this.freshness(receivedAt(snapshot)),
      loadSql: (columns, tenant) => scanSql(opened, snapshot, { columns, tenant }),
    };
  }

  /** Age of the newest event that can be queried; 0 when there is no newer one. */
  private async freshness(newest: number | undefined): Promise<number | null> {
    if (newest === undefined) return null;
    return (await this.eventsWait()) ? Math.max(0, Math.round(Date.now() - newest)) : 0;
  }
}
