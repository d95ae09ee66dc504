import type { Config } from "../base/config.js";
import { assert, TributaryError } from "../base/errors.js";
import { type Lend, withAll } from "../base/with-all.js";
import { isTenantId } from "../contracts/envelope.js";
import { type Catalog, type CatalogTable, emptySql, TENANT_COLUMN, visibleColumns } from "./catalog.js";
import { type Lease, WorkerPool } from "./pool.js";
import type { AnswerColumn, AnswerFormat, Failure, Parameter, SessionTable } from "./protocol.js";
import { SnapshotSealer } from "./snapshot-token.js";
import { checkText, positionAt } from "./sql-text.js";
import type { Answered } from "./worker-process.js";

export interface QueryRequest {
  readonly tenant: string;
  readonly sql: string;
  /** Values in order ($1 or ?), or by name ($name). */
  readonly params?: readonly Parameter[] | Readonly<Record<string, Parameter>>;
  readonly format: AnswerFormat;
  readonly numbers: "exact" | "js";
}

export interface QueryAnswer {
  readonly columns: readonly AnswerColumn[];
  /** The rows as UTF-8 in the format asked for, in pieces; CSV with its header, JSON without the outer brackets. */
  readonly rows: readonly Buffer[];
  readonly rowCount: number;
  readonly elapsedMs: number;
  readonly snapshot: string;
}

/** Who asks, while an answer is made. */
export interface Asking {
  /** Aborted when nobody wants the answer any more. */
  readonly signal?: AbortSignal;
  /** Called before anything of an answer is kept; again, when what was kept is dropped and the query starts over. */
  begin?(): void;
  /** Called with each piece of the answer that is kept: its bytes. */
  take?(bytes: number): void;
}

/** What one answer may hold as text; more than any screen, less than what hurts the server. */
const MAX_ANSWER_CHARACTERS = 64 * 1024 * 1024;
/** What parsing may take; a fresh worker may need seconds to start on a machine that is busy with other things. */
const GATE_MS = 30_000;
/** Between asking a query to stop and killing the worker it runs in. */
const GRACE_MS = 500;

/** Answers SQL of one tenant: gate, barrier, sandbox. */
export class QueryService {
  readonly pool: WorkerPool;
  private readonly catalog: Catalog;
  private readonly limits: Config["query"];
  private readonly sealer = new SnapshotSealer();

  constructor(catalog: Catalog, limits: Config["query"]) {
    this.catalog = catalog;
    this.limits = limits;
    const { workers, maxWaiting, memoryBytes } = limits;
    this.pool = new WorkerPool({
      memoryBytes,
      shares: {
        running: workers,
        runningPerTenant: limits.maxRunningPerTenant ?? Math.max(1, workers - 1),
        waiting: maxWaiting,
        waitingPerTenant: limits.maxWaitingPerTenant ?? Math.max(1, Math.floor(maxWaiting / 4)),
      },
    });
  }

  /** Errors: TributaryError TRB-QUERY-*, TRB-REQ-INVALID; all of them safe to show. */
  async run(request: QueryRequest, asking: Asking = {}): Promise<QueryAnswer> {
    const started = performance.now();
    const { tenant, sql } = request;
    assert(isTenantId(tenant), "a query has a tenant");
    checkText(sql, this.limits.maxSqlBytes);
    // A query yields its place once at most, and nothing of its answer has left by then.
    const found = (await this.attempt(request, false, asking)) ?? (await this.attempt(request, true, asking));
    assert(found !== undefined, "a query that has yielded keeps its place");
    const { columns, rowCount, rows, tables } = found;
    const elapsedMs = Math.round((performance.now() - started) * 10) / 10;
    return { columns, rows, rowCount, elapsedMs, snapshot: this.sealer.seal(tenant, tables) };
  }

  /** Undefined when the query had to yield its place. */
  private async attempt(request: QueryRequest, yielded: boolean, asking: Asking) {
    const { tenant, sql } = request;
    const { signal } = asking;
    const lease = await this.pool.lease(tenant, { yielded, ...(signal === undefined ? {} : { signal }) });
    try {
      const available = await this.catalog.tables();
      const names = available.map(({ domain, model }) => ({ domain, model }));
      const query = await lease.call({ type: "gate", sql, available: names }, GATE_MS);
      if (query.type === "yielded") return undefined;
      if (query.type !== "gated") throw refusal(sql, query);
      const read = query.tables.map((at) => available[at]!);
      const parameters = parametersOf(query.parameters, request.params);
      const tables = (query.readsCatalog ? available : read).map((table) =>
        sessionTable(table, available, tenant, read.includes(table)),
      );
      const rows: Buffer[] = [];
      const answered = await withAll(tables, (loaded) => {
        asking.begin?.();
        return this.execute(lease, request, loaded, parameters, (text) => {
          const piece = Buffer.from(text);
          rows.push(piece);
          asking.take?.(piece.length);
        });
      });
      if (answered.type === "yielded") return undefined;
      if (answered.type !== "done") throw refusal(sql, answered);
      return { columns: answered.columns, rowCount: answered.rowCount, rows, tables: read };
    } finally {
      lease.release();
    }
  }

  close(): Promise<void> {
    return this.pool.close();
  }

  private execute(
    lease: Lease,
    request: QueryRequest,
    tables: readonly SessionTable[],
    parameters: Readonly<Record<string, Parameter>>,
    onRows: (text: string) => void,
  ): Promise<Answered> {
    const { timeoutMs, maxRows } = this.limits;
    return lease.call(
      {
        type: "run",
        tenant: request.tenant,
        tables,
        sql: request.sql,
        parameters,
        format: request.format,
        numbers: request.numbers,
        maxRows,
        maxCharacters: MAX_ANSWER_CHARACTERS,
        timeoutMs,
      },
      timeoutMs + GRACE_MS,
      onRows,
    );
  }
}

/** What a session is told of a table; files with rows are lent for as long as it may read them. */
function sessionTable(
  table: CatalogTable,
  available: readonly CatalogTable[],
  tenant: string,
  rows: boolean,
): Lend<SessionTable> {
  const columns = visibleColumns(table).map(({ name }) => name);
  const needed = columns.includes(TENANT_COLUMN) ? columns : [...columns, TENANT_COLUMN];
  const sameName = available.filter(({ model }) => model.toLowerCase() === table.model.toLowerCase());
  const told = {
    domain: table.domain,
    model: table.model,
    columns,
    emptySql: emptySql(table, needed),
    unqualified: sameName.length === 1,
  };
  return (use) =>
    rows
      ? table.withRows(needed, tenant, (loadSql) => use({ ...told, loadSql }))
      : use({ ...told, loadSql: undefined });
}

/** The request's values by the parameters' names; each parameter needs one, and no value may be left over. */
function parametersOf(names: readonly string[], given: QueryRequest["params"]): Record<string, Parameter> {
  const count = Array.isArray(given) ? given.length : Object.keys(given ?? {}).length;
  if (count > names.length) throw leftOver(names);
  const values = new Map<string, Parameter>(
    Array.isArray(given)
      ? given.map((value: Parameter, at) => [String(at + 1), value])
      : Object.entries((given ?? {}) as Record<string, Parameter>),
  );
  const bound: Record<string, Parameter> = Object.create(null) as Record<string, Parameter>;
  for (const name of names) {
    const value = values.get(name);
    if (value === undefined)
      throw new TributaryError("TRB-REQ-INVALID", `params: expected a value for $${name}`);
    bound[name] = value;
    values.delete(name);
  }
  if (values.size > 0) throw leftOver(names);
  return bound;
}

const leftOver = (names: readonly string[]) =>
  new TributaryError("TRB-REQ-INVALID", `params: expected ${names.length} values, one for each parameter`);

/** A failure in the user's terms: its code, and where it is. */
function refusal(sql: string, answered: Answered): TributaryError {
  assert(answered.type === "failed", "a worker answers what it was asked");
  const { code, message, offset, cause }: Failure = answered;
  const position = answered.position ?? positionAt(sql, offset);
  return new TributaryError(code, message, {
    ...(position === undefined ? {} : { details: { position } }),
    ...(cause === undefined ? {} : { cause: new Error(cause) }),
  });
}
