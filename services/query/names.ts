import { TributaryError } from "../base/errors.js";
import { fold } from "./syntax.js";

/** What a table is called: "scm" and "files". */
export interface TableName {
  readonly domain: string;
  readonly model: string;
}

/** Names of common tables that a query sees; the innermost first. */
export interface Scope {
  readonly name: string;
  readonly outer: Scope | undefined;
}

/**
 * The scope inside which a common table of this name can be seen too. Should this walk and the engine ever disagree
 * on where that is, the engine would look the name up among tables, views and files: so it must be one that none of
 * the engine's own can have. Errors: TRB-QUERY-CONSTRUCT.
 */
export function withCommonTable(name: string, outer: Scope | undefined): Scope {
  const folded = fold(name);
  if (
    !/^[\p{L}_][\p{L}\p{M}\p{N}_$ -]*$/u.test(name) ||
    /^(duckdb_|pg_|sqlite_|pragma_|which_)/.test(folded)
  ) {
    throw new TributaryError(
      "TRB-QUERY-CONSTRUCT",
      "sql: the name of a common table expression must be letters, digits and underscores, and not one of the engine's own",
    );
  }
  return { name: folded, outer };
}

/** Whether a name without a schema means a common table here. */
export function isCommonTable(name: string, scope: Scope | undefined): boolean {
  for (let at = scope; at !== undefined; at = at.outer) if (at.name === fold(name)) return true;
  return false;
}

/** The tenant's table that a name means, or why none is, in words that repeat only what the user wrote. */
export function tableNamed<Table extends TableName>(
  available: readonly Table[],
  name: string,
  schema: string | undefined,
): Table | string {
  const found = available.filter(
    ({ domain, model }) =>
      fold(model) === fold(name) && (schema === undefined || fold(domain) === fold(schema)),
  );
  const [table] = found;
  if (table === undefined) {
    return `${schema === undefined ? name : `${schema}.${name}`}: not one of the tenant's tables`;
  }
  if (found.length === 1) return table;
  const choices = found.map(({ domain, model }) => `${domain}.${model}`).sort();
  return `${name}: ambiguous, write one of ${choices.join(", ")}`;
}
