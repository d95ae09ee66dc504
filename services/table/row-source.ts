import type { DuckDBConnection } from "@duckdb/node-api";

/**
 * What an upsert takes in: the winners of a batch, and, as it asks for them, their keys and their rows as relations of
 * one connection. Names and lifetimes of the relations are the source's business.
 */
export interface RowSource {
  readonly connection: DuckDBConnection;
  /** One record (order.ts) an entity, the winner of its events in the batch; ROW counts 0, 1, 2, … */
  readonly records: Uint32Array;
  /** Name of a relation (ord, tenant_id, entity_id, <order columns>) with a row per record; stands until the next batch has its own. */
  keys(): Promise<string>;
  /** The rows of the records named, at most one each; a record without one becomes a tombstone. Once, after `keys`. */
  rows(survivors: readonly number[]): Promise<SourceRows>;
  /** Nothing of it is read any more; what it holds in memory may go. Comes after `rows`, also when that failed. */
  release(): Promise<void>;
}

export interface SourceRows {
  /** Name of a relation with the table's columns; stands until `release`. */
  readonly relation: string;
  /** Ordinals of its rows, in its order. */
  readonly ords: readonly number[];
  /** What an error of reading the relation is to the source; undefined when it is none of the rows'. */
  readonly failure?: (error: unknown) => Error | undefined;
}
