import { type CodeEntry, entry } from "./code-entry.js";

/** Failures of tables, ingest, queries and of the program itself. */
export const LAKE_CODES = {
  // --- tables -------------------------------------------------------------------------------------------
  "TRB-TABLE-CORRUPT": entry(
    500,
    false,
    "a table's log or one of its files is damaged",
    "restore the table, or rebuild it from raw",
  ),
  "TRB-TABLE-UNSUPPORTED": entry(
    500,
    false,
    "the table uses a feature this version does not know",
    "use a version that knows it",
  ),
  "TRB-TABLE-NOT-FOUND": entry(404, false, "no such table", "see `tributary table ls` or GET /v1/tables"),
  "TRB-LAKE-CLOSED": entry(
    503,
    true,
    "this lake was closed because it moves; it can be read, not written",
    "start bus and ingest with the configuration of the lake that it has moved to",
  ),
  "TRB-LAKE-DIVERGED": entry(
    409,
    false,
    "the lake to be copied to holds something else, or has gone on by itself",
    "choose an empty place; if the move is done already, there is nothing left to copy",
  ),
  // --- bulk jobs ----------------------------------------------------------------------------------------
  "TRB-BULK-MAPPING": entry(
    400,
    false,
    "the mapping does not fit the source or the descriptor",
    "read the message: it names the value and what was expected; `--dry-run` shows what comes of it",
  ),
  "TRB-BULK-TENANT": entry(
    400,
    false,
    "a row is of another tenant than its job",
    "take it out of the export, or start a job that is not bound to one tenant",
  ),
  "TRB-BULK-TYPE": entry(
    400,
    false,
    "an event is of another entity type than its job",
    "take it out of the export, or start a job that is not bound to one type",
  ),
  "TRB-JOB-UNKNOWN": entry(404, false, "no such job", "see `tributary bootstrap ls`"),
  "TRB-JOB-EXISTS": entry(409, false, "the id is another job's", "choose another id, or none"),
  "TRB-JOB-ELSEWHERE": entry(
    409,
    true,
    "another process goes on with the job",
    "nothing; what it has landed is not landed twice",
  ),
  "TRB-JOB-ENDED": entry(
    409,
    false,
    "the job is done, has failed or was cancelled",
    "start another one; one that has failed can be resumed",
  ),
  "TRB-RECONCILE-EXPORT": entry(
    409,
    false,
    "an export is empty or incomplete: what it lacks is no ground to delete anything",
    "mend the rejected rows and resume the job, or cancel it and export again",
  ),
  "TRB-RECONCILE-CONFIRM": entry(
    409,
    false,
    "a job has found entities that its export lacks, and waits to be told that they are to be deleted",
    "look at the number; then `tributary bootstrap confirm ID --deletes N`, or cancel the job",
  ),
  "TRB-RECONCILE-COUNT": entry(
    409,
    false,
    "another number of deletes was confirmed than the job has found",
    "look at the job's status, and confirm the number that it tells",
  ),
  "TRB-RECONCILE-TABLE": entry(
    409,
    false,
    "raw was replaced since a job has looked for what is to be deleted",
    "cancel the job and start another one",
  ),
  "TRB-STORE-FAILED": entry(
    503,
    true,
    "the object store did not answer as it should",
    "look at disk space and permissions; with S3 also at the bucket's region, credentials and limits",
  ),
  "TRB-STORE-CACHE-SMALL": entry(
    500,
    false,
    "files that are needed together are larger than the cache of the object store",
    "raise storage.s3.cacheBytes",
  ),
  // --- ingest and models --------------------------------------------------------------------------------
  "TRB-INGEST-TIME": entry(
    500,
    false,
    "a model takes too long for one event alone",
    "mend the model or raise ingest.modelTimeoutMs, then `tributary deadletter redrive`",
  ),
  "TRB-INGEST-MEMORY": entry(
    500,
    false,
    "one event alone needs more memory than ingest may use",
    "raise ingest.duckdbMemoryBytes or mend the model, then `tributary deadletter redrive`",
  ),
  "TRB-MODEL-FAILED": entry(
    500,
    false,
    "a model fails on this event",
    "fix the model or the event, then redrive the dead letter",
  ),
  "TRB-MODEL-SUPERSEDED": entry(503, true, "another worker has a newer model in force", "update this one"),
  "TRB-MODEL-INVALID": entry(
    400,
    false,
    "a model cannot be used",
    "read the message: it names the model, the column and what was expected",
  ),
  // --- queries ------------------------------------------------------------------------------------------
  "TRB-QUERY-SYNTAX": entry(400, false, "the SQL cannot be parsed", "correct it at the position given"),
  "TRB-QUERY-STATEMENT": entry(400, false, "not exactly one SELECT", "send one SELECT statement"),
  "TRB-QUERY-TABLE": entry(
    400,
    false,
    "a table is not one of the tenant's tables",
    "see GET /v1/tables for the names",
  ),
  "TRB-QUERY-FUNCTION": entry(
    400,
    false,
    "a function is not on the list of reviewed functions",
    "use another function; docs/sql.md lists them",
  ),
  "TRB-QUERY-CONSTRUCT": entry(400, false, "a construct is not allowed", "write the query without it"),
  "TRB-QUERY-COLUMN": entry(
    400,
    false,
    "a column is not found or ambiguous",
    "see GET /v1/tables for the columns",
  ),
  "TRB-QUERY-BIND": entry(
    400,
    false,
    "the query does not fit the tables' types",
    "check the types at the position given",
  ),
  "TRB-QUERY-RUNTIME": entry(
    400,
    false,
    "the query failed on a value",
    "check casts and arithmetic at the position given; try_cast helps",
  ),
  "TRB-QUERY-TOO-LONG": entry(413, false, "the SQL is too long or too deep", "send shorter SQL"),
  "TRB-QUERY-TIMEOUT": entry(
    408,
    false,
    "the query ran past its time limit",
    "ask for less, or filter earlier",
  ),
  "TRB-QUERY-MEMORY": entry(
    413,
    false,
    "the query needs more memory than allowed",
    "ask for less, or aggregate earlier",
  ),
  "TRB-QUERY-ROWS": entry(413, false, "the answer has more rows than allowed", "add a LIMIT or aggregate"),
  "TRB-QUERY-TENANT": entry(
    400,
    false,
    "the query names no tenant and the token grants more than one",
    "set tenant in the request",
  ),
  "TRB-QUERY-UNREADABLE": entry(
    503,
    true,
    "a table cannot be read now",
    "try again; if it stays so, the operator finds out with `tributary table ls`",
  ),
  "TRB-QUERY-BUSY": entry(429, true, "too many queries wait", "wait for Retry-After and send again"),
  // --- the program itself -------------------------------------------------------------------------------
  "TRB-CONFIG": entry(
    500,
    false,
    "the configuration is wrong",
    "read the message: it names the path, what was expected and what was found",
  ),
  "TRB-DATA-VERSION": entry(
    500,
    false,
    "the data folder was written by a newer version of Tributary",
    "run that version or a later one; a downgrade could lose data",
  ),
  "TRB-CLI-USAGE": entry(400, false, "the command line is wrong", "see --help"),
  "TRB-CLI-SOURCE": entry(
    400,
    false,
    "what events are to be read from cannot be read",
    "look at the file or repository named",
  ),
  "TRB-CLI-UNREACHABLE": entry(
    503,
    true,
    "the server cannot be reached or does not answer",
    "check --url, and that the server runs",
  ),
  "TRB-INTERNAL": entry(
    500,
    true,
    "a fault in Tributary itself",
    "report it with the request id; a retry may help",
  ),
} as const satisfies Record<string, CodeEntry>;
