import { Duck } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { HeldFile } from "../../sources/held-file.js";
import type { Answering } from "../../sources/serve.js";
import { ChunkMaker } from "./chunk-maker.js";
import type { Chunk, ChunkRequest, Opened } from "./chunk-protocol.js";
import { type FoundTypes, findTypes } from "./event-types.js";
import { WholeEvents } from "./whole-events.js";

/** Reads files of strangers and makes chunks of them; it holds nothing that is not in them. */
export const chunkRequests: Answering<ChunkRequest> = ({ memoryBytes }, tell) => {
  let maker: ChunkMaker | WholeEvents | undefined;
  let engine: Duck | undefined;
  let file: HeldFile | undefined;
  return async (request): Promise<Chunk | FoundTypes | Opened> => {
    if (request.type === "next") {
      if (maker === undefined) throw new TributaryError("TRB-INTERNAL");
      const chunk = await maker.next(request);
      if (chunk.end) await file?.close();
      return chunk;
    }
    if (request.type === "leave") {
      if (!(maker instanceof WholeEvents)) throw new TributaryError("TRB-INTERNAL");
      return maker.leave(request);
    }
    if (request.type === "types") {
      const held = await HeldFile.open(request.unit);
      const duck = await Duck.sealed(memoryBytes, [held.path]);
      try {
        return await duck.with((connection) => findTypes(connection, held, request, tell.getsOn));
      } finally {
        duck.close();
        await held.close();
      }
    }
    // One engine a file: it is sealed with what it may reach.
    maker?.close();
    engine?.close();
    await file?.close();
    maker = undefined;
    file = await HeldFile.open(request.unit);
    const made = request.models.flatMap(({ out, tombstones }) => [out, tombstones]);
    engine = await Duck.sealed(memoryBytes, [file.path, request.out, ...made]);
    const kind = request.unit.format === "events" ? WholeEvents : ChunkMaker;
    maker = await kind.open(engine, file, request, tell.rejects, tell.getsOn);
    return maker.opened;
  };
};
