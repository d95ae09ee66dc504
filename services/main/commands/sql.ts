import type { Command } from "commander";
import { TributaryError } from "../../base/errors.js";
import { failureOf, HttpClient } from "../client/http-client.js";
import { textTable } from "../terminal/text-table.js";
import { type ClientOptions, withClient } from "./options.js";

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
  withClient(program.command("sql").argument("<sql>", "one SELECT"))
    .description("ask a question of one tenant's tables")
    .option("--tenant <id>", "the tenant, where the token grants several")
    .option("--csv", "answer in CSV")
    .action(async (sql: string, options: SqlOptions) => {
      const text = await ask(sql, options);
      if (options.csv) {
        process.stdout.write(text);
        return;
      }
      const answer = answerOf(text);
      if (options.json) {
        console.log(JSON.stringify(answer));
        return;
      }
      console.log(
        textTable(
          answer.columns.map(({ name }) => name),
          answer.rows,
        ),
      );
      console.log(
        `(${answer.rowCount} ${answer.rowCount === 1 ? "row" : "rows"}, ${Math.round(answer.elapsedMs)} ms)`,
      );
    });
}

/** The body of the server's answer. Errors: the server's code, TRB-CLI-UNREACHABLE, TRB-CLI-USAGE. */
async function ask(sql: string, { url, token, tenant, csv }: SqlOptions): Promise<string> {
  const client = new HttpClient({ url, token, connections: 1 });
  try {
    const body = Buffer.from(JSON.stringify({ sql, ...(tenant === undefined ? {} : { tenant }) }));
    const accept = csv ? "text/csv" : "application/json";
    const answer = await client.post("/v1/query", "application/json", body, accept);
    if (answer.status !== 200) throw failureOf(answer);
    return answer.body.toString("utf8");
  } finally {
    client.close();
  }
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
