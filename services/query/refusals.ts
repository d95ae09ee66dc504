import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { positionAt } from "./sql-text.js";
import type { JsonObject } from "./syntax.js";

const NAMES_SHOWN = 5;
const NAME_CHARACTERS = 64;

/** Refusals of one text of SQL, each with the place of the node it is about. */
export class Refusals {
  private readonly functions: { readonly name: string; readonly node: JsonObject }[] = [];

  constructor(private readonly sql: string) {}

  construct(what: string, node: JsonObject): TributaryError {
    return this.at("TRB-QUERY-CONSTRUCT", `sql: ${what} is not allowed`, node);
  }

  at(code: Code, message: string, node: JsonObject): TributaryError {
    const position = positionAt(this.sql, locationOf(node));
    return new TributaryError(code, message, position === undefined ? undefined : { details: { position } });
  }

  /** Functions are told of together in the end: who moves a query here wants to know of all of them. */
  noteFunction(name: string, node: JsonObject): void {
    this.functions.push({ name, node });
  }

  /** Of the functions noted, in the order of the text; undefined when there is none. */
  ofFunctions(): TributaryError | undefined {
    const noted = this.functions.toSorted((a, b) => locationOf(a.node) - locationOf(b.node));
    const [first] = noted;
    if (first === undefined) return undefined;
    const names = [...new Set(noted.map(({ name }) => name))];
    const shown = names.slice(0, NAMES_SHOWN).map((name) => name.slice(0, NAME_CHARACTERS));
    const more = names.length > NAMES_SHOWN ? `, and ${names.length - NAMES_SHOWN} more` : "";
    const what = names.length === 1 ? "not a function" : "not functions";
    return this.at(
      "TRB-QUERY-FUNCTION",
      `${shown.join(", ")}${more}: ${what} that queries may use`,
      first.node,
    );
  }
}

/** A byte offset; the parser writes "nowhere" as a number larger than any text. */
const locationOf = ({ query_location: at }: JsonObject): number =>
  typeof at === "number" ? at : Number.MAX_VALUE;
