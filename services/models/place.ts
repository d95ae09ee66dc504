import { TributaryError } from "../base/errors.js";
import type { Model } from "./project.js";

type Placed = Pick<Model, "file" | "template" | "sql" | "entityType">;

/** A model that does not do: file, and the line where there is one, which counts as in the rendered SQL from 1. */
export function invalid(model: Placed, message: string, sqlLine?: number, cause?: unknown): TributaryError {
  return new TributaryError(
    "TRB-MODEL-INVALID",
    `${placeOf(model, sqlLine)}: ${message}`,
    cause === undefined ? {} : { cause },
  );
}

/** "models/scm/files.sql, line 7"; the file alone where no line is known. */
export function placeOf(model: Placed, sqlLine: number | undefined): string {
  const line = sqlLine === undefined ? undefined : templateLine(model, sqlLine);
  return line === undefined ? model.file : `${model.file}, line ${line}`;
}

/** The line DuckDB names in a message about a statement. */
export function lineOf(message: string): number | undefined {
  const [, line] = /^LINE (\d+): /m.exec(message) ?? [];
  return line === undefined ? undefined : Number(line);
}

/** The same for a field that a struct does not have, of which DuckDB tells the name alone. */
export function lineOfKey(message: string, sql: string): number | undefined {
  const [, key] = /^Binder Error: Could not find key "(.+)" in struct/.exec(message) ?? [];
  if (key === undefined) return undefined;
  const index = sql.split("\n").findIndex((line) => line.includes(key));
  return index < 0 ? undefined : index + 1;
}

/** The line on which a byte of the SQL stands. */
export const lineAt = (sql: string, offset: number): number =>
  Buffer.from(sql).subarray(0, offset).toString("latin1").split("\n").length;

/** The line of the template that became a line of the SQL; undefined when none is written like it. */
function templateLine({ template, sql, entityType }: Placed, sqlLine: number): number | undefined {
  const rendered = sql.split("\n").map((line) => line.trim());
  const text = rendered[sqlLine - 1];
  const source = `"${entityType.replaceAll('"', '""')}"`;
  const alike = template
    .split("\n")
    .map((line) => line.replace(/\{\{-?\s*source\([^)]*\)\s*-?\}\}/g, () => source).trim())
    .flatMap((line, index) =>
      line === text || (line.includes("{{") && line.endsWith(text ?? "\n")) ? [index + 1] : [],
    );
  // Of equal lines the one that comes as late as it does in the SQL.
  return alike[rendered.slice(0, sqlLine - 1).filter((line) => line === text).length];
}
