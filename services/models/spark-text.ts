/** Something in a model's SQL that the syntax tree does not tell of, and that Spark reads otherwise or not at all. */
export interface TextFinding {
  /** In UTF-16 units. */
  readonly at: number;
  readonly found: string;
  readonly instead: string;
}

/** In this order: what comes first at a place is what stands there. */
const TOKENS = new RegExp(
  [
    /(?<comment>--[^\n]*|\/\*[\s\S]*?\*\/)/,
    /(?<prefixed>\b[A-Za-z]'(?:[^']|'')*')/,
    /(?<string>'(?:[^']|'')*')/,
    /(?<quoted>"(?:[^"]|"")*")/,
    /(?<dollar>\$)/,
    /(?<cast>::)/,
    /(?<colon>:)/,
    /(?<number>\b\d[\w.]*|\.\d\w*)/,
    /(?<word>[A-Za-z_]\w*)/,
    /(?<sign>[^\s])/,
  ]
    .map(({ source }) => source)
    .join("|"),
  "gu",
);

const NUMBER = /^(?:\d+|\d+\.\d+|\d+(?:\.\d+)?[eE]\d+)$/;

/** Spark wants a length with VARCHAR and CHAR, and has no TEXT. */
const isTextType = (word: string, before: string, after: string): boolean =>
  before.toLowerCase() === "as" && /^(varchar|text|char|bpchar)$/i.test(word) && /^\s*\)/.test(after);

/** Looks at the SQL token by token; `source` is the relation's name as the template engine has written it. */
export function textFindings(sql: string, source: string): TextFinding[] {
  const findings: TextFinding[] = [];
  let before = "";
  for (const match of sql.matchAll(TOKENS)) {
    const [token] = match;
    const { comment, prefixed, string, quoted, dollar, cast, colon, number, word } = match.groups!;
    if (comment !== undefined) continue;
    const tell = (found: string, instead: string) => findings.push({ at: match.index, found, instead });
    if (prefixed !== undefined) tell(prefixed.slice(0, 2), "a plain text in quotes");
    else if (string?.includes("\\")) tell("a backslash in a text", "Spark takes it for an escape");
    else if (string?.slice(1, -1).includes("'")) tell("a quote in a text", "Spark 3.5 leaves it out");
    else if (string !== undefined && before.endsWith("'")) tell("two texts side by side", "one text");
    else if (quoted === source && before.toLowerCase() !== "from")
      tell(quoted, "an alias behind source(), and that");
    else if (quoted !== undefined && quoted !== source)
      tell(quoted, "the name without quotes: Spark takes it for text");
    else if (dollar !== undefined) tell("$", "a plain text in quotes");
    else if (cast !== undefined) tell("::", "cast(x as type)");
    else if (colon !== undefined) tell(":", "x AS name");
    else if (word !== undefined && isTextType(word, before, sql.slice(match.index + word.length)))
      tell(word, "string");
    else if (number !== undefined && !NUMBER.test(number)) tell(number, "a number in decimal digits");
    else if (word?.toLowerCase() === "from" && /^(?:|\(|,)$/.test(before)) {
      tell(before === "," ? "a comma before FROM" : "FROM before SELECT", "SELECT columns FROM source");
    }
    before = token;
  }
  return findings;
}
