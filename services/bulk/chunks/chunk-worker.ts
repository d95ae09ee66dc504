import { Duck } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { beKillable } from "../../base/killable.js";
import type { ReaderOptions, Reply } from "../../sources/protocol.js";
import { ChunkMaker } from "./chunk-maker.js";
import type { Chunk, ChunkRequest, Opened } from "./chunk-protocol.js";
import { type FoundTypes, findTypes } from "./event-types.js";
import { WholeEvents } from "./whole-events.js";

/** The child process that reads files of strangers and makes chunks of them. It holds nothing that is not in them. */
const { memoryBytes } = JSON.parse(process.argv[2] ?? "{}") as ReaderOptions;
const TELL_MS = 100;

let maker: ChunkMaker | WholeEvents | undefined;
let told = 0;

function getsOn(): void {
  if (performance.now() - told < TELL_MS) return;
  told = performance.now();
  send({ type: "progress" });
}

async function handle(request: ChunkRequest): Promise<void> {
  try {
    send({ type: "done", result: await answer(request) });
  } catch (error) {
    const failure = error instanceof TributaryError ? error : new TributaryError("TRB-INTERNAL");
    send({ type: "failed", code: failure.code, message: failure.message });
  }
}

async function answer(request: ChunkRequest): Promise<Chunk | FoundTypes | Opened> {
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
    return duck.with((connection) => findTypes(connection, request, getsOn));
  }
  // One process a file: its engine is sealed with what it may reach.
  const made = request.models.flatMap(({ out, tombstones }) => [out, tombstones]);
  const duck = await Duck.sealed(memoryBytes, [request.unit.path, request.out, ...made]);
  const kind = request.unit.format === "events" ? WholeEvents : ChunkMaker;
  maker = await kind.open(
    duck,
    request,
    (rejects) => send(rejects.length === 0 ? { type: "progress" } : { type: "rejects", rejects }),
    getsOn,
  );
  return maker.opened;
}

function send(reply: Reply): void {
  process.send?.(reply);
}

beKillable();
process.on("message", (request: ChunkRequest) => void handle(request));
