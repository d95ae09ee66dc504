/**
 * The closed list of failure codes. One code per failure; docs/errors.md is checked against this list.
 * `retry` says whether sending the same thing again can help; `remedy` is written for the person who reads it.
 */
export interface CodeEntry {
  readonly status: number;
  readonly retry: boolean;
  readonly summary: string;
  readonly remedy: string;
}

const entry = (status: number, retry: boolean, summary: string, remedy: string): CodeEntry => ({
  status,
  retry,
  summary,
  remedy,
});

export const CODES = {
  // --- requests as a whole -------------------------------------------------------------------------------
  "TRB-REQ-CONTENT-TYPE": entry(
    415,
    false,
    "the content type is not one this route reads",
    "send application/x-protobuf, application/json or application/x-ndjson",
  ),
  "TRB-REQ-ENCODING": entry(
    415,
    false,
    "the content encoding is unknown or its bytes are damaged",
    "send gzip or no content encoding",
  ),
  "TRB-REQ-UNREADABLE": entry(
    400,
    false,
    "the body as a whole cannot be read",
    "check that the body matches its content type; nothing of it was accepted",
  ),
  "TRB-REQ-TOO-LARGE": entry(
    413,
    false,
    "the body, encoded or decoded, is over the limit",
    "send smaller batches",
  ),
  "TRB-REQ-TOO-MANY-EVENTS": entry(
    413,
    false,
    "one request holds more events than allowed",
    "send smaller batches",
  ),
  "TRB-REQ-TOO-SLOW": entry(
    408,
    true,
    "the body came slower than the least rate allowed",
    "send the whole body at once, or smaller batches",
  ),
  "TRB-REQ-NOT-FOUND": entry(404, false, "no such route", "see /docs"),
  "TRB-REQ-INVALID": entry(
    400,
    false,
    "a field of the request has a wrong shape",
    "read the message: it names the field and what was expected",
  ),
  // --- who may ------------------------------------------------------------------------------------------
  "TRB-AUTH-MISSING": entry(401, false, "no bearer token", "send Authorization: Bearer <token>"),
  "TRB-AUTH-INVALID": entry(
    401,
    false,
    "the token is not valid here",
    "get a fresh token; algorithm, signature, audience or claims did not match",
  ),
  "TRB-AUTH-KEYS": entry(
    503,
    true,
    "the keys that the token may be signed with cannot be fetched now",
    "try again later; the operator looks at the JWKS URL and the log",
  ),
  "TRB-AUTH-EXPIRED": entry(401, false, "the token has expired", "get a fresh token"),
  "TRB-AUTH-ROLE": entry(403, false, "the token's role may not do this", "use a token of the role named"),
  "TRB-AUTH-TENANT": entry(
    403,
    false,
    "the token does not grant this tenant",
    "use a token that grants it; whether the tenant exists is not told",
  ),
  "TRB-AUTH-ENTITY-TYPE": entry(
    403,
    false,
    "the token does not grant this entity type",
    "use a token that grants it",
  ),
  // --- events -------------------------------------------------------------------------------------------
  "TRB-EVENT-MALFORMED": entry(
    400,
    false,
    "the event cannot be read as a ChangeEvent",
    "check the encoding against proto/tributary/v1/change_event.proto",
  ),
  "TRB-EVENT-TENANT": entry(
    400,
    false,
    "tenant_id is missing or not allowed",
    "use 1 to 128 of A-Z a-z 0-9 . _ : - and start with a letter or digit",
  ),
  "TRB-EVENT-ENTITY-TYPE": entry(
    400,
    false,
    "entity_type is missing or unknown",
    "use the full name of a message in the deployed descriptors",
  ),
  "TRB-EVENT-ENTITY-ID": entry(400, false, "entity_id is not 1 to 1024 bytes of UTF-8", "set entity_id"),
  "TRB-EVENT-OPERATION": entry(
    400,
    false,
    "operation is missing or unknown",
    "use OPERATION_CREATED, OPERATION_UPDATED or OPERATION_DELETED",
  ),
  "TRB-EVENT-VERSION": entry(
    400,
    false,
    "version is not between 1 and 2^63-1",
    "send a version that grows with each change of the entity; in JSON as a string",
  ),
  "TRB-EVENT-TIME": entry(
    400,
    false,
    "occurred_at is not a timestamp between years 1 and 9999",
    "send a valid google.protobuf.Timestamp or leave it out",
  ),
  "TRB-EVENT-CONTENT": entry(
    400,
    false,
    "the content does not fit the operation",
    "send a payload for created and updated, none for deleted",
  ),
  "TRB-EVENT-PAYLOAD-TYPE": entry(
    400,
    false,
    "the payload's type is not the entity_type",
    "make payload's type URL end in entity_type",
  ),
  "TRB-EVENT-PAYLOAD-DECODE": entry(
    400,
    false,
    "the payload does not decode as its type",
    "encode it with the deployed descriptors",
  ),
  "TRB-EVENT-PAYLOAD-SIZE": entry(
    413,
    false,
    "the payload is over the inline limit",
    "keep payloads under the limit; larger ones need offload, which is not there yet",
  ),
  "TRB-EVENT-COMPRESSION": entry(
    400,
    false,
    "payload_compression is unknown or the bytes are not packed that way",
    "use COMPRESSION_GZIP, COMPRESSION_ZSTD or none",
  ),
  "TRB-EVENT-REFERENCE": entry(
    400,
    false,
    "payload_reference does not name a payload of this tenant and type",
    "use the uri, sha256 and size that POST /v1/uploads was asked with",
  ),
  // --- the bus and its stream ---------------------------------------------------------------------------
  "TRB-EVENT-PAYLOAD-MISSING": entry(
    400,
    false,
    "the payload that the event refers to is not in the object store, or is of another size",
    "upload it (POST /v1/uploads), then publish the event again; of a dead letter, restore the object and redrive",
  ),
  "TRB-EVENT-PAYLOAD-CORRUPT": entry(
    500,
    false,
    "the payload that the event refers to is not what it was",
    "restore the object from a copy, then `tributary deadletter redrive`",
  ),
  "TRB-UPLOAD-MISMATCH": entry(
    400,
    false,
    "the bytes of an upload are not those that it was asked for",
    "ask POST /v1/uploads with the SHA-256 and the size of the bytes that are sent",
  ),
  "TRB-BUS-BUSY": entry(
    429,
    true,
    "ingest is behind or too much is in flight; nothing was accepted",
    "wait for Retry-After and send again",
  ),
  "TRB-BUS-TABLE-HELD": entry(
    429,
    true,
    "the raw table of this entity type cannot land events and its disk budget is used; other types go on",
    "send the event again later; operators see why in `tributary table ls`",
  ),
  "TRB-BUS-STREAM-DOWN": entry(
    503,
    true,
    "the stream does not answer; what was sent may or may not have been stored",
    "send again later; the operator sees the cause in the log",
  ),
  "TRB-BUS-DRAINING": entry(503, true, "the server is shutting down", "send again to another server"),
  "TRB-STREAM-CORRUPT": entry(
    500,
    false,
    "an acknowledged record of the log is damaged",
    "restore the segment from a copy; nothing was cut or skipped",
  ),
  "TRB-STREAM-FORGOTTEN": entry(
    500,
    false,
    "the stream has forgotten events that were still to be read",
    "an ingest: keep the stream's retention above the longest outage, and bring the lost events again from their source; a follower: begin anew from the lake",
  ),
  "TRB-STREAM-FENCED": entry(
    503,
    true,
    "another writer has taken over this log; what was not acknowledged may be missing",
    "send again; stop the older of the two servers on this data folder",
  ),
  "TRB-STREAM-LOCKED": entry(
    500,
    false,
    "another process writes this data folder",
    "stop the other process, or use another folder",
  ),
  "TRB-STREAM-REPLACED": entry(
    500,
    false,
    "the stream was deleted and made anew under the same name",
    "start the process again; it reads the new stream from its beginning",
  ),
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
    "start ingest with the configuration of the lake that it has moved to",
  ),
  "TRB-LAKE-DIVERGED": entry(
    409,
    false,
    "the lake to be copied to holds something else, or has gone on by itself",
    "choose an empty place; if the move is done already, there is nothing left to copy",
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
  "TRB-INGEST-EVENT": entry(
    500,
    false,
    "an event of the stream cannot be read",
    "see the dead letter; redrive it after the fix",
  ),
  "TRB-MODEL-FAILED": entry(
    500,
    false,
    "a model fails on this event",
    "fix the model or the event, then redrive the dead letter",
  ),
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

export type Code = keyof typeof CODES;
