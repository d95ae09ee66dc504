import type { Code } from "../base/codes.js";
import type { TableName } from "./names.js";
import type { SqlPosition } from "./sql-text.js";

/** How an answer's rows are written. */
export type AnswerFormat = "json" | "csv" | "ndjson";

/** A value bound to a parameter: lists hold scalars of one kind. */
export type Scalar = null | boolean | number | string;
export type Parameter = Scalar | readonly Scalar[];

/** One table of a session: what the worker copies before any SQL of the user's runs. */
export interface SessionTable {
  readonly domain: string;
  readonly model: string;
  /** What the user sees, by name. */
  readonly columns: readonly string[];
  /**
   * Trusted SQL with these columns and tenant_id, over files that may hold rows of several tenants. Undefined where
   * only the table's columns matter: then any session that knows the table will do.
   */
  readonly loadSql: string | undefined;
  /** The same without any row. */
  readonly emptySql: string;
  /** Whether the model's name alone means this table. */
  readonly unqualified: boolean;
}

export interface WorkerOptions {
  readonly memoryBytes: number;
}

/** Messages to a worker, one at a time. */
export type Request =
  /** Parses and gates: what a query reads is known before anything is loaded for it. */
  | { readonly type: "gate"; readonly sql: string; readonly available: readonly TableName[] }
  | {
      readonly type: "run";
      readonly tenant: string;
      readonly tables: readonly SessionTable[];
      readonly sql: string;
      readonly parameters: Readonly<Record<string, Parameter>>;
      readonly format: AnswerFormat;
      readonly numbers: "exact" | "js";
      readonly maxRows: number;
      readonly maxCharacters: number;
      readonly timeoutMs: number;
    };

export interface AnswerColumn {
  readonly name: string;
  readonly type: string;
}

/** Messages from a worker: for a "run", any number of "rows" come before its last message. */
export type Reply =
  | { readonly type: "ready" }
  | { readonly type: "rows"; readonly text: string }
  | {
      readonly type: "gated";
      /** Places in the list of what is available. */
      readonly tables: readonly number[];
      readonly parameters: readonly string[];
      readonly readsCatalog: boolean;
    }
  | { readonly type: "done"; readonly columns: readonly AnswerColumn[]; readonly rowCount: number }
  | Failure;

/** Carries nothing the engine said but the kind of failure and where: its words can hold values and paths. */
export interface Failure {
  readonly type: "failed";
  readonly code: Code;
  /** Words of our own, safe to show. */
  readonly message?: string;
  /** UTF-8 byte offset in the user's SQL, as the engine tells it. */
  readonly offset?: number;
  /** The same as a place, as the gate tells it. */
  readonly position?: SqlPosition;
  /** With TRB-INTERNAL, for the log: what of ours did not hold, or the engine's kind of exception. */
  readonly cause?: string;
  /** The engine has failed inwardly: this process is to run nothing more. */
  readonly broken?: true;
}
