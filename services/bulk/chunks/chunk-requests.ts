import { Duck } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { HeldFile } from "../../sources/held-file.js";
import { START } from "../../sources/reader.js";
import type { Answering } from "../../sources/serve.js";
import { ChunkMaker } from "./chunk-maker.js";
import type { Chunk, ChunkRequest, Opened, OpenFiles } from "./chunk-protocol.js";
import { type FoundTypes, findTypes } from "./event-types.js";
import { WholeEvents } from "./whole-events.js";

/** Reads files of strangers and makes chunks of them; it holds nothing that is not in them. */
export const chunkRequests: Answering<ChunkRequest> = ({ memoryBytes }, tell) => {
  let maker: ChunkMaker | WholeEvents | undefined;
  let engine: Duck | undefined;
  let held: HeldFile[] = [];
  /** What was asked for, as far as it is open; then what of it comes next. */
  let open: OpenFiles | undefined;
  let rest: OpenFiles | undefined;

  const close = async () => {
    for (const file of held) await file.close();
    held = [];
  };

  /** One engine for files that are alike: it is sealed with what it may reach. */
  const begin = async (asked: OpenFiles): Promise<Opened> => {
    maker?.close();
    engine?.close();
    maker = undefined;
    engine = undefined;
    rest = undefined;
    await close();
    for (const { unit } of asked.files) held.push(await HeldFile.open(unit));
    const made = asked.models.flatMap(({ out, tombstones }) => [out, tombstones]);
    engine = await Duck.sealed(memoryBytes, [...held.map(({ path }) => path), asked.out, ...made]);
    const kind = asked.files[0]!.unit.format === "events" ? WholeEvents : ChunkMaker;
    maker = await kind.open(engine, held, asked, tell.rejects, tell.getsOn);
    open = asked;
    return maker.opened;
  };

  return async (request): Promise<Chunk | FoundTypes | Opened> => {
    if (request.type === "open") return begin(request);
    if (request.type === "next") {
      if (rest !== undefined) await begin(rest);
      if (maker === undefined || open === undefined) throw new TributaryError("TRB-INTERNAL");
      const chunk = await maker.next(request);
      if (!chunk.end) return chunk;
      const files = open.files.filter(({ file }) => file >= chunk.next.file);
      if (files.length > 0) rest = { ...open, files, from: START };
      else await close();
      return { ...chunk, end: rest === undefined };
    }
    if (request.type === "leave") {
      if (!(maker instanceof WholeEvents)) throw new TributaryError("TRB-INTERNAL");
      return maker.leave(request);
    }
    const file = await HeldFile.open(request.unit);
    const duck = await Duck.sealed(memoryBytes, [file.path]);
    try {
      return await duck.with((connection) => findTypes(connection, file, request, tell.getsOn));
    } finally {
      duck.close();
      await file.close();
    }
  };
};
