import { createHash } from "node:crypto";
import {
  BIGINT,
  BOOLEAN,
  DOUBLE,
  type DuckDBConnection,
  type DuckDBInstance,
  DuckDBListValue,
  type DuckDBPreparedStatement,
  type DuckDBResult,
  type DuckDBType,
  type DuckDBValue,
  LIST,
  StatementType,
  VARCHAR,
} from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../base/duckdb.js";
import { assert, TributaryError } from "../base/errors.js";
import { shut, strangersEngine } from "../base/sealed-engine.js";
import { isTenantId } from "../contracts/envelope.js";
import { qualifiedName, TENANT_COLUMN } from "./catalog.js";
import { RowEncoder, typeName } from "./encode.js";
import type { AnswerColumn, Parameter, Request, SessionTable } from "./protocol.js";

type Run = Extract<Request, { type: "run" }>;

/** Names of schemas that are the engine's own. */
const RESERVED = new Set([
  "main",
  "temp",
  "system",
  "memory",
  "information_schema",
  "pg_catalog",
  "recurring",
]);

/**
 * Rows the engine keeps ready before the first is fetched: an error within them arrives with its place. Texts are not
 * counted, so that this is some hundred thousand rows.
 */
const EAGER_BYTES = 4 * 1024 * 1024;
/** Rows that go to the parent in one message. */
const MESSAGE_CHARACTERS = 256 * 1024;

/**
 * An engine of its own that holds copies of one tenant's rows at one version of each table, and has no way out:
 * no files, no network, no extensions, no settings. Opened by trusted SQL, closed before any SQL of a user's.
 */
export class Session {
  private readonly instance: DuckDBInstance;
  private readonly database: DuckDBConnection;
  private readonly tenant: string;
  private readonly stamps: ReadonlyMap<string, { readonly rows: string; readonly columns: string }>;

  private constructor(
    instance: DuckDBInstance,
    connection: DuckDBConnection,
    tenant: string,
    tables: readonly SessionTable[],
  ) {
    this.instance = instance;
    this.database = connection;
    this.tenant = tenant;
    this.stamps = new Map(tables.map((table) => [qualifiedName(table), stamps(table)]));
  }

  /** A session without tables, for parsing: nothing that reaches it runs. */
  static parser(memoryBytes: number): Promise<Session> {
    return Session.start(memoryBytes, "parser", []);
  }

  /** `onConnection` gets the connection to interrupt when loading takes too long. */
  static async open(
    memoryBytes: number,
    tenant: string,
    tables: readonly SessionTable[],
    onConnection: (connection: DuckDBConnection) => void,
  ): Promise<Session> {
    assert(isTenantId(tenant), "a session has a tenant");
    return Session.start(memoryBytes, tenant, tables, onConnection);
  }

  private static async start(
    memoryBytes: number,
    tenant: string,
    tables: readonly SessionTable[],
    onConnection?: (connection: DuckDBConnection) => void,
  ): Promise<Session> {
    const instance = await strangersEngine(memoryBytes);
    try {
      const connection = await instance.connect();
      onConnection?.(connection);
      await connection.run("SET errors_as_json=true; SET TimeZone='UTC'; SET Calendar='gregorian'");
      await connection.run(`SET streaming_buffer_size='${EAGER_BYTES}B'`);
      for (const table of tables) await load(connection, tenant, table);
      await shut(connection);
      return new Session(instance, connection, tenant, tables);
    } catch (error) {
      instance.closeSync();
      throw error;
    }
  }

  /** Whether it holds these very rows: the same tenant, tables and files. */
  serves(tenant: string, tables: readonly SessionTable[]): boolean {
    return (
      tenant === this.tenant &&
      tables.every((table) => {
        const held = this.stamps.get(qualifiedName(table));
        const { rows, columns } = stamps(table);
        return table.loadSql === undefined ? held?.columns === columns : held?.rows === rows;
      })
    );
  }

  get connection(): DuckDBConnection {
    return this.database;
  }

  /** The syntax tree as JSON; syntax errors are in it. */
  async parse(sql: string): Promise<string> {
    const [row] = await rowsOf(
      this.database,
      "SELECT json_serialize_sql($1::VARCHAR, skip_empty := true, skip_null := true)",
      [sql],
    );
    const ast = row?.[0];
    assert(typeof ast === "string", "the parser answers with text");
    return ast;
  }

  /**
   * Runs one gated SELECT; `emit` gets the encoded rows in pieces. Errors: TributaryError for limits, the engine's
   * own otherwise (failureOf reads them).
   */
  async run(
    request: Run,
    emit: (text: string) => void,
  ): Promise<{ columns: AnswerColumn[]; rowCount: number }> {
    // A stream of rows that fails midway just ends, but it leaves its transaction aborted: see mustBeWhole.
    await this.database.run("BEGIN TRANSACTION READ ONLY");
    let statement: DuckDBPreparedStatement | undefined;
    try {
      statement = await this.database.prepare(request.sql);
      assert(statement.statementType === StatementType.SELECT, "the gate lets only SELECT pass");
      bind(statement, request.parameters);
      const result = await statement.stream();
      const answer = await this.send(result, request, emit);
      await this.mustBeWhole();
      return answer;
    } finally {
      statement?.destroySync();
      await this.database.run("ROLLBACK");
    }
  }

  private async send(result: DuckDBResult, request: Run, emit: (text: string) => void) {
    const types = result.columnTypes();
    const encoder = new RowEncoder(result.columnNames(), types, request.format, request.numbers);
    let text = encoder.head();
    let rowCount = 0;
    let characters = 0;
    for (;;) {
      const chunk = await result.fetchChunk();
      if (chunk === null || chunk.rowCount === 0) break;
      if (rowCount + chunk.rowCount > request.maxRows) {
        throw new TributaryError("TRB-QUERY-ROWS", `the answer has more than ${request.maxRows} rows`);
      }
      const rows = encoder.rows(chunk);
      if (request.format === "json" && rowCount > 0) text += ",";
      text += rows;
      rowCount += chunk.rowCount;
      characters += rows.length;
      if (characters > request.maxCharacters)
        throw new TributaryError(
          "TRB-QUERY-ROWS",
          `the answer has more than ${request.maxCharacters} characters`,
        );
      if (text.length > MESSAGE_CHARACTERS) {
        emit(text);
        text = "";
      }
    }
    if (text !== "") emit(text);
    const columns = encoder.names.map((name, at) => ({ name, type: typeName(types[at]!) }));
    return { columns, rowCount };
  }

  /** An aborted transaction refuses even this; then rows are missing, and what was sent must not be believed. */
  private async mustBeWhole(): Promise<void> {
    try {
      await this.database.run("SELECT 1");
    } catch {
      throw new TributaryError("TRB-QUERY-RUNTIME");
    }
  }

  close(): void {
    this.database.closeSync();
    this.instance.closeSync();
  }
}

/** The barrier: only the tenant's rows get past this point, and only the columns an analyst may see. */
async function load(connection: DuckDBConnection, tenant: string, table: SessionTable): Promise<void> {
  assert(!RESERVED.has(table.domain.toLowerCase()), "a domain is not one of the engine's schemas");
  assert(table.columns.length > 0, "a table has columns");
  const name = qualifiedName(table);
  const columns = table.columns.map(identifier).join(", ");
  await connection.run(`CREATE SCHEMA IF NOT EXISTS ${identifier(table.domain)}`);
  await connection.run(
    `CREATE TABLE ${name} AS SELECT ${columns} FROM (${table.loadSql ?? table.emptySql}) AS rows WHERE ${identifier(TENANT_COLUMN)} = ${literal(tenant)}`,
  );
  if (table.columns.includes(TENANT_COLUMN)) {
    const [row] = await rowsOf(
      connection,
      // By bytes: whatever made the filter above take another tenant's name for this one, types and collations do not here.
      `SELECT count(*) FROM ${name} WHERE encode(${identifier(TENANT_COLUMN)}::VARCHAR) IS DISTINCT FROM encode($1::VARCHAR)`,
      [tenant],
    );
    assert(row?.[0] === 0n, "a session holds rows of its tenant only");
  }
  if (table.unqualified) {
    await connection.run(`CREATE VIEW ${identifier(table.model)} AS SELECT ${columns} FROM ${name}`);
  }
}

/** Two loads are the same when the same SQL reads the same files, which never change, into the same names. */
const stamps = ({ loadSql, emptySql, columns, unqualified }: SessionTable) => ({
  rows: digest([loadSql ?? null, columns, unqualified]),
  columns: digest([emptySql, columns, unqualified]),
});

const digest = (parts: unknown): string =>
  createHash("sha256").update(JSON.stringify(parts)).digest("base64");

function bind(statement: DuckDBPreparedStatement, parameters: Readonly<Record<string, Parameter>>): void {
  const values: Record<string, DuckDBValue> = {};
  const types: Record<string, DuckDBType> = {};
  for (const [name, value] of Object.entries(parameters)) {
    if (!Array.isArray(value)) {
      const scalar = value as Exclude<Parameter, readonly unknown[]>;
      const whole = typeof scalar === "number" && Number.isSafeInteger(scalar);
      values[name] = whole ? BigInt(scalar) : scalar;
      // Left to itself, the binding takes it for the largest kind there is.
      if (whole) types[name] = BIGINT;
      continue;
    }
    const items = value as readonly Parameter[];
    const whole = items.every(
      (item) => item === null || (typeof item === "number" && Number.isSafeInteger(item)),
    );
    const first = items.find((item) => item !== null);
    types[name] = LIST(
      typeof first === "boolean" ? BOOLEAN : typeof first === "number" ? (whole ? BIGINT : DOUBLE) : VARCHAR,
    );
    values[name] = new DuckDBListValue(
      items.map((item) => (whole && typeof item === "number" ? BigInt(item) : (item as DuckDBValue))),
    );
  }
  statement.bind(values, types);
}
