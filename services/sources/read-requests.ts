import type { DuckDBConnection } from "@duckdb/node-api";
import { Duck } from "../base/duckdb.js";
import { readDeltaLog } from "./delta-log.js";
import { HeldFile } from "./held-file.js";
import type { Request, Results } from "./protocol.js";
import { SourceReader } from "./reader.js";
import { countRows, sampleRows } from "./sample.js";
import type { Answering } from "./serve.js";
import type { ReadUnit } from "./unit.js";

/** Reads files of strangers; it holds nothing that is not in them. */
export const readRequests: Answering<Request> = ({ memoryBytes }, tell) => {
  return async (request): Promise<Results[Request["type"]]> => {
    switch (request.type) {
      case "sample":
        return withReader(request.unit, (reader, connection) =>
          sampleRows(reader, connection, request.unit.format, request.rows),
        );
      case "count":
        return withReader(request.unit, (reader, connection) =>
          countRows(reader, connection, request.from, tell.rejects),
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
  };

  /** An engine of the file's own, which can reach nothing else. */
  async function withReader<T>(
    unit: ReadUnit,
    use: (reader: SourceReader, connection: DuckDBConnection) => Promise<T>,
  ): Promise<T> {
    const file = await HeldFile.open(unit);
    const duck = await Duck.sealed(memoryBytes, [file.path]);
    try {
      return await duck.with(async (connection) => {
        const reader = await SourceReader.open(connection, file, tell.getsOn);
        return use(reader, connection);
      });
    } finally {
      duck.close();
      await file.close();
    }
  }
};
