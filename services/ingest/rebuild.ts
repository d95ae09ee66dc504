import type { DuckDBConnection } from "@duckdb/node-api";
import type { DeltaTable } from "../table/delta-table.js";
import { replaceTable } from "../table/replace.js";
import { CatchUp } from "./catch-up.js";
import type { IngestContext } from "./context.js";
import type { Refiner } from "./refine.js";
import { refinedSpec } from "./refined-table.js";
import { type SideTable, SideTables } from "./side-tables.js";

/**
 * Builds a table anew from raw, beside the old one and inside its folder, then takes the new files over in one commit:
 * queries see the old table or the new one. Goes on where a crashed rebuild of the same model stopped.
 */
export class Rebuild {
  private readonly sides: SideTables;

  constructor(
    private readonly context: IngestContext,
    private readonly table: DeltaTable,
    private readonly refiner: Refiner,
    private readonly connection: DuckDBConnection,
    /** Gives up; the next rebuild of the same model goes on where this one stopped. */
    private readonly signal: AbortSignal,
  ) {
    this.sides = new SideTables(context, table, refiner.model, connection);
  }

  async run(raw: DeltaTable): Promise<void> {
    const { context } = this;
    const { name, fingerprint } = this.refiner.model;
    const side = await this.sides.begin();
    try {
      if (await this.fill(side, raw)) context.log.info({ model: name, fingerprint }, "rebuilt");
    } finally {
      // What is left of the folder is removed next.
      await side.table.settled();
    }
  }

  /** False when another worker has ended it. */
  private async fill(side: SideTable, raw: DeltaTable): Promise<boolean> {
    const { context, table, refiner } = this;
    context.log.info({ model: refiner.model.name }, "rebuilding from raw");
    const spec = await refinedSpec(this.connection, refiner.model);
    const writer = context.writerFor(side.table, refiner.model.entityType);
    const options = {
      express: false,
      between: () => this.sides.compact(writer),
      isOurs: () => true,
      signal: this.signal,
    };
    for (;;) {
      await new CatchUp(context, refiner, writer, raw, options).run();
      await table.refresh();
      const also = this.sides.takenOver(side);
      if (also === undefined) return false;
      const result = await replaceTable(table, side.table, side.folder, spec, also);
      if (result.kind === "committed") return true;
    }
  }

  /** As `SideTables.clean`. */
  clean(): Promise<void> {
    return this.sides.clean();
  }
}
