import { constants, getPriority, setPriority } from "node:os";
import { TributaryError } from "../../base/errors.js";
import type { ReadLimits } from "../../sources/inspect.js";
import { SourceProcess } from "../../sources/source-process.js";
import { CHUNK_WORKER } from "./chunk-file.js";

/** Chunks are made of what others leave of the machine: with so much less of a claim than the process has that commits them. */
const NICER = 14;

/** A process that makes chunks, for whoever ends it. */
export function chunkProcess({
  readerMemoryBytes: memoryBytes,
  readerIdleMs: idleMs,
}: Pick<ReadLimits, "readerMemoryBytes" | "readerIdleMs">): SourceProcess {
  const process = new SourceProcess({ memoryBytes, idleMs }, CHUNK_WORKER);
  giveWay(process.pid);
  return process;
}

function giveWay(pid: number | undefined): void {
  try {
    if (pid !== undefined) setPriority(pid, Math.min(constants.priority.PRIORITY_LOW, getPriority() + NICER));
  } catch {
    // It has ended already, or this system does not know of it.
  }
}

/**
 * The processes that make chunks of a source's files, one file at a time each: starting one and warming it up takes a
 * second of CPU, as much as fifty thousand rows.
 */
export class ChunkProcesses {
  private readonly all: SourceProcess[] = [];
  private readonly idle: SourceProcess[] = [];
  private readonly waiting: { give(process: SourceProcess): void; refuse(error: TributaryError): void }[] =
    [];
  private ended = false;

  /** At most `most` of them. */
  constructor(
    private readonly limits: ReadLimits,
    private readonly most: number,
  ) {}

  /**
   * One of them, for the caller alone. They are given in the order of calls, so that nobody waits for a later one, who
   * may be waiting for him. Errors: TRB-SOURCE-READER once they have ended.
   */
  async claim(): Promise<SourceProcess> {
    if (this.ended) throw new TributaryError("TRB-SOURCE-READER");
    const process = this.idle.pop() ?? (this.all.length < this.most ? this.start() : undefined);
    return process ?? new Promise((give, refuse) => this.waiting.push({ give, refuse }));
  }

  /** Gives one back that has done what it was told. */
  giveBack(process: SourceProcess): void {
    const next = this.waiting.shift();
    if (next !== undefined) next.give(process);
    else this.idle.push(process);
  }

  /** Kills all of them, whoever has them; resolves when they are gone. */
  async end(): Promise<void> {
    this.ended = true;
    for (const { refuse } of this.waiting.splice(0)) refuse(new TributaryError("TRB-SOURCE-READER"));
    for (const process of this.all) process.end();
    await Promise.all(this.all.map(({ ended }) => ended));
  }

  private start(): SourceProcess {
    const process = chunkProcess(this.limits);
    this.all.push(process);
    return process;
  }
}
