import { text as textOf } from "node:stream/consumers";
import { type Command, Option } from "commander";
import { TributaryError } from "../../base/errors.js";
import { failureOf, HttpClient } from "../client/http-client.js";
import { sqlExcerpt } from "../terminal/sql-excerpt.js";
import { textTable } from "../terminal/text-table.js";
import { type ClientOptions, withClient } from "./options.js";
import { ShownFailure } from "./report.js";

interface SqlOptions extends ClientOptions {
  readonly tenant?: string;
  readonly csv?: boolean;
}

interface Answer {
  readonly columns: readonly { readonly name: string; readonly type: string }[];
  readonly rows: readonly (readonly unknown[])[];
  readonly rowCount: number;
  readonly elapsedMs: number;
}

export function addSqlCommand(program: Command): void {
  withClient(program.command("sql").argument("<sql>", "one SELECT; - reads it from standard input"))
    .description("ask a question of one tenant's tables")
    .option("--tenant <id>", "the tenant, where the token grants several")
    .addOption(
      new Option("--csv", 'answer in CSV: NULL is an empty field, an empty text ""').conflicts("json"),
    )
    .action(async (argument: string, options: SqlOptions) => {
      const sql = argument === "-" ? await textOf(process.stdin) : argument;
      const text = await ask(sql, options);
      if (options.csv) {
        process.stdout.write(text);
        return;
      }
      const answer = answerOf(text);
      console.log(options.json ? JSON.stringify(answer) : answerTable(answer));
    });
}

function answerTable({ columns, rows, rowCount, elapsedMs }: Answer): string {
  const names = columns.map(({ name }) => name);
  const table = textTable(names, rows, { nulls: process.stdout.hasColors?.() ? "dim" : "plain" });
  return `${table}\n(${rowCount} ${rowCount === 1 ? "row" : "rows"}, ${Math.round(elapsedMs)} ms)`;
}

/** The body of the server's answer. Errors: the server's code, TRB-CLI-UNREACHABLE, TRB-CLI-USAGE. */
async function ask(sql: string, { url, token, tenant, csv }: SqlOptions): Promise<string> {
  const client = new HttpClient({ url, token, connections: 1 });
  try {
    const body = Buffer.from(JSON.stringify({ sql, ...(tenant === undefined ? {} : { tenant }) }));
    const accept = csv ? "text/csv" : "application/json";
    const answer = await client.post("/v1/query", "application/json", body, accept);
    if (answer.status !== 200) throw withPlace(failureOf(answer), sql);
    return answer.body.toString("utf8");
  } finally {
    client.close();
  }
}

/** Shows a failure that has a place in the SQL below the line it is on. */
function withPlace(failure: TributaryError, sql: string): TributaryError {
  const { line, column } = (failure.details?.position ?? {}) as { line?: unknown; column?: unknown };
  if (typeof line !== "number" || typeof column !== "number") return failure;
  const excerpt = sqlExcerpt(sql, { line, column }, process.stderr.columns);
  return excerpt === undefined ? failure : new ShownFailure(failure, excerpt);
}

function answerOf(text: string): Answer {
  try {
    const answer = JSON.parse(text) as Partial<Answer>;
    if (Array.isArray(answer.columns) && Array.isArray(answer.rows)) return answer as Answer;
  } catch {
    // Another program answers there.
  }
  throw new TributaryError("TRB-CLI-UNREACHABLE", "expected an answer of Tributary, found something else");
}
