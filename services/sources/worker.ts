import type { DuckDBConnection } from "@duckdb/node-api";
import { Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { beKillable } from "../base/killable.js";
import { readDeltaLog } from "./delta-log.js";
import type { ReaderOptions, Reply, Request, Results } from "./protocol.js";
import { SourceReader } from "./reader.js";
import { countRows, sampleRows } from "./sample.js";
import type { ReadUnit } from "./unit.js";

/** The child process in which files of strangers are read. It holds nothing that is not in them. */
const { memoryBytes } = JSON.parse(process.argv[2] ?? "{}") as ReaderOptions;
/** No more often than this the parent is told that it gets on. */
const TELL_MS = 100;

let told = 0;
const getsOn = () => {
  if (performance.now() - told < TELL_MS) return;
  told = performance.now();
  send({ type: "progress" });
};

async function handle(request: Request): Promise<void> {
  try {
    send({ type: "done", result: await answer(request) });
  } catch (error) {
    const failure = error instanceof TributaryError ? error : new TributaryError("TRB-INTERNAL");
    send({ type: "failed", code: failure.code, message: failure.message });
  }
}

async function answer(request: Request): Promise<Results[Request["type"]]> {
  switch (request.type) {
    case "sample":
      return withReader(request.unit, (reader, connection) =>
        sampleRows(reader, connection, request.unit.format, request.rows),
      );
    case "count":
      return withReader(request.unit, (reader, connection) =>
        countRows(reader, connection, request.from, (rejects) =>
          send(rejects.length === 0 ? { type: "progress" } : { type: "rejects", rejects }),
        ),
      );
    case "delta": {
      const log = new Map(request.log);
      const duck = await Duck.sealed(memoryBytes, [...log.values()]);
      try {
        return await readDeltaLog(request.shown, log, duck);
      } finally {
        duck.close();
      }
    }
  }
}

/** An engine of the file's own, which can reach nothing else. */
async function withReader<T>(
  unit: ReadUnit,
  use: (reader: SourceReader, connection: DuckDBConnection) => Promise<T>,
): Promise<T> {
  const duck = await Duck.sealed(memoryBytes, [unit.path]);
  try {
    return await duck.with(async (connection) => {
      const reader = await SourceReader.open(connection, unit, getsOn);
      return use(reader, connection);
    });
  } finally {
    duck.close();
  }
}

function send(reply: Reply): void {
  process.send?.(reply);
}

beKillable();
process.on("message", (request: Request) => void handle(request));
