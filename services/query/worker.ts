import type { DuckDBConnection } from "@duckdb/node-api";
import { beKillable } from "../base/killable.js";
import { tellParent } from "../base/tell-parent.js";
import { failureOf, loadFailureOf } from "./failure.js";
import { checkQuery } from "./gate.js";
import type { Failure, Reply, Request, WorkerOptions } from "./protocol.js";
import { Session } from "./session.js";

/**
 * The child process in which all SQL of users is parsed and run. It serves one tenant in its whole life (the pool
 * sees to that) and is killed without regret: it holds nothing that is not in the lake.
 */
const { memoryBytes } = JSON.parse(process.argv[2] ?? "{}") as WorkerOptions;
const PARSER_BYTES = 128 * 1024 * 1024;

let parser: Session | undefined;
let session: Session | undefined;
/** Of the query that was gated last, which is the one that runs. */
let columns: ReadonlyMap<number, string> = new Map();

async function handle(request: Request): Promise<void> {
  try {
    if (request.type === "gate") await gate(request);
    else await run(request);
  } catch (error) {
    send(failureOf(error));
  }
}

/**
 * Here and not beside the bus: the syntax tree of 64 KB of SQL is megabytes, and reading it takes longer than an event
 * may wait. A process that could be made to lie of the tree could be made to run something else as well.
 */
async function gate({ sql, available }: Extract<Request, { type: "gate" }>): Promise<void> {
  parser ??= await Session.parser(PARSER_BYTES);
  const { tables, columnsAt, ...query } = checkQuery(sql, await parser.parse(sql), available);
  columns = columnsAt;
  send({ type: "gated", ...query, tables: tables.map((table) => available.indexOf(table)) });
}

async function run(request: Extract<Request, { type: "run" }>): Promise<void> {
  let current: DuckDBConnection | undefined;
  // Again and again: an interrupt that comes between two statements is forgotten.
  const deadline = performance.now() + request.timeoutMs;
  const timer = setInterval(() => {
    if (performance.now() >= deadline) current?.interrupt();
  }, 20);
  try {
    if (session?.serves(request.tenant, request.tables) !== true) {
      session?.close();
      session = undefined;
      try {
        session = await Session.open(memoryBytes, request.tenant, request.tables, (connection) => {
          current = connection;
        });
      } catch (error) {
        send(loadFailureOf(error));
        return;
      }
    }
    current = session.connection;
    try {
      const answer = await session.run(request, (text) => send({ type: "rows", text }));
      send({ type: "done", ...answer });
    } catch (error) {
      send(withColumn(failureOf(error, true)));
    }
  } finally {
    clearInterval(timer);
  }
}

/** Of names, a failure repeats what the user wrote where it is. */
function withColumn(failed: Failure): Failure {
  const name =
    failed.code === "TRB-QUERY-COLUMN" && failed.offset !== undefined
      ? columns.get(failed.offset)
      : undefined;
  return name === undefined ? failed : { ...failed, message: `${name}: no such column, or more than one` };
}

const send = (reply: Reply) => void tellParent(reply);

beKillable();
process.on("message", (request: Request) => void handle(request));
Session.parser(PARSER_BYTES).then(
  (ready) => {
    parser = ready;
    send({ type: "ready" });
  },
  () => process.exit(1),
);
