import { Duck } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import type { Answering } from "../../sources/serve.js";
import { ChunkMaker } from "./chunk-maker.js";
import type { Chunk, ChunkRequest, Opened } from "./chunk-protocol.js";
import { type FoundTypes, findTypes } from "./event-types.js";
import { WholeEvents } from "./whole-events.js";

/** Reads files of strangers and makes chunks of them; it holds nothing that is not in them. */
export const chunkRequests: Answering<ChunkRequest> = ({ memoryBytes }, tell) => {
  let maker: ChunkMaker | WholeEvents | undefined;
  let engine: Duck | undefined;
  return async (request): Promise<Chunk | FoundTypes | Opened> => {
    if (request.type === "next") {
      if (maker === undefined) throw new TributaryError("TRB-INTERNAL");
      return maker.next(request);
    }
    if (request.type === "leave") {
      if (!(maker instanceof WholeEvents)) throw new TributaryError("TRB-INTERNAL");
      return maker.leave(request);
    }
    if (request.type === "types") {
      const duck = await Duck.sealed(memoryBytes, [request.unit.path]);
      try {
        return await duck.with((connection) => findTypes(connection, request, tell.getsOn));
      } finally {
        duck.close();
      }
    }
    // One engine a file: it is sealed with what it may reach.
    maker?.close();
    engine?.close();
    maker = undefined;
    const made = request.models.flatMap(({ out, tombstones }) => [out, tombstones]);
    engine = await Duck.sealed(memoryBytes, [request.unit.path, request.out, ...made]);
    const kind = request.unit.format === "events" ? WholeEvents : ChunkMaker;
    maker = await kind.open(engine, request, tell.rejects, tell.getsOn);
    return maker.opened;
  };
};
