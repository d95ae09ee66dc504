import type { Command } from "commander";
import { CODES, type Code } from "../../base/codes.js";
import { TributaryError } from "../../base/errors.js";
import { textTable } from "../text-table.js";
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
      const response = await ask(sql, options);
      if (options.csv) {
        process.stdout.write(await response.text());
        return;
      }
      const answer = (await response.json()) as Answer;
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

async function ask(sql: string, { url, token, tenant, csv }: SqlOptions): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(new URL("/v1/query", url), {
      method: "POST",
      headers: {
        authorization: `Bearer ${token}`,
        "content-type": "application/json",
        accept: csv ? "text/csv" : "application/json",
      },
      body: JSON.stringify({ sql, ...(tenant === undefined ? {} : { tenant }) }),
    });
  } catch (cause) {
    throw new TributaryError("TRB-CLI-UNREACHABLE", `--url: no server answers at ${url}`, { cause });
  }
  if (response.ok) return response;
  const body = (await response.json().catch(() => undefined)) as
    | { error?: { code?: string; message?: string; details?: Record<string, unknown> } }
    | undefined;
  const code = body?.error?.code;
  if (code === undefined || !(code in CODES)) {
    throw new TributaryError("TRB-INTERNAL", `the server answered ${response.status}`);
  }
  throw new TributaryError(code as Code, body?.error?.message, {
    ...(body?.error?.details === undefined ? {} : { details: body.error.details }),
  });
}
