import { randomBytes } from "node:crypto";
import { readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { hasCode, TributaryError } from "./errors.js";
import { type FileOps, isAbsent, type OpenFile, readWhole, writeFully } from "./files.js";

export interface ProcessLock {
  release(): Promise<void>;
}

/** The lock that `acquire` gets, tried again for `ms` milliseconds while another holds it. Errors: as `acquire`. */
export async function waitForLock(ms: number, acquire: () => Promise<ProcessLock>): Promise<ProcessLock> {
  for (const until = performance.now() + ms; ; ) {
    try {
      return await acquire();
    } catch (error) {
      const held = hasCode(error, "TRB-STREAM-LOCKED");
      if (!held || performance.now() > until) throw error;
      await sleep(RETRY_MS);
    }
  }
}

/** How often a holder writes to its file; one that cannot be looked up by its id is live as long as it does. */
const BEAT_MS = 500;
const WATCH_MS = 4 * BEAT_MS;
/** Between two tries for a lock that is held. */
const RETRY_MS = 50;

/**
 * One live process per `name` in `folder`. Errors: TRB-STREAM-LOCKED.
 *
 * Each contender announces itself with a file whose name tells who it is and is never used again, then looks for
 * others: whoever sees a live one withdraws. Of two that start together at least one sees the other, so two never
 * hold it; a file left by a dead process can be removed by anyone without a race, as nobody can take it over.
 *
 * A courtesy all the same, not a fence: a process that was stopped for a while and goes on later does not notice that
 * its file is gone. What must not be written twice is guarded where it is written.
 */
export async function acquireLock(files: FileOps, folder: string, name: string): Promise<ProcessLock> {
  const mine = `${name}@${process.pid}-${processStart(process.pid) ?? "0"}-${processSpace()}-${randomBytes(4).toString("hex")}.lock`;
  const path = join(folder, mine);
  for (let attempt = 1; ; attempt++) {
    const heart = await beating(files, path);
    const others = (await files.list(folder)).filter(
      (entry) => entry.name !== mine && entry.name.startsWith(`${name}@`) && entry.name.endsWith(".lock"),
    );
    const states = await Promise.all(
      others.map(async (other) => {
        const live = await isLive(files, folder, other.name);
        if (!live) await removeLock(files, join(folder, other.name));
        return live;
      }),
    );
    const release = async () => {
      await heart.stop();
      await removeLock(files, path);
    };
    if (!states.includes(true)) return { release };
    await release();
    // Two that met while starting both withdrew; a random pause lets one of them through.
    if (attempt === 4) throw new TributaryError("TRB-STREAM-LOCKED");
    await sleep(5 + Math.random() * 40);
  }
}

/** Makes the file and writes to it, again and again, until stopped. */
async function beating(files: FileOps, path: string): Promise<{ stop(): Promise<void> }> {
  const file = await files.open(path, "create");
  let beats = 0;
  let beat: Promise<void> | undefined;
  const timer = setInterval(() => {
    // A disk that fails or is full takes no beats; then the file's name still speaks to our own machine.
    beat ??= writeBeat(file, ++beats)
      .catch(() => undefined)
      .finally(() => {
        beat = undefined;
      });
  }, BEAT_MS);
  timer.unref();
  return {
    stop: async () => {
      clearInterval(timer);
      await beat;
      await file.close().catch(() => undefined); // nothing in it is needed
    },
  };
}

const writeBeat = (file: OpenFile, beats: number): Promise<void> =>
  writeFully(file, Buffer.from(String(beats).padStart(12, "0")), 0);

/**
 * A process of our own process space is looked up. One of another (a container, another machine, this one before it
 * was started anew) is watched for a while: its id means nothing here.
 */
async function isLive(files: FileOps, folder: string, fileName: string): Promise<boolean> {
  const match = /@(\d+)-(\d+)-([0-9a-f]+\.\d+)-[0-9a-f]+\.lock$/.exec(fileName);
  if (match === null || match[3] !== processSpace()) return beats(files, join(folder, fileName));
  const pid = Number(match[1]);
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
  }
  // The id may have been given to a newer process; then the start time differs.
  const start = processStart(pid);
  return start === undefined || start === match[2];
}

async function beats(files: FileOps, path: string): Promise<boolean> {
  const before = await readWhole(files, path);
  for (let waited = 0; waited < WATCH_MS; waited += BEAT_MS) {
    await sleep(BEAT_MS);
    const now = await readWhole(files, path);
    if (now === undefined) return false;
    if (before?.equals(now) !== true) return true;
  }
  return false;
}

/** Start time in clock ticks since boot; "" for a process that is dead but not reaped; undefined where unknown. */
function processStart(pid: number): string | undefined {
  let line: string;
  try {
    line = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return undefined;
  }
  // The second field is a name in parentheses that may itself hold spaces and parentheses.
  const fields = line.slice(line.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" ? "" : fields[19];
}

/** Where process ids mean the same: this run of the machine, and in it this space of processes. */
function processSpace(): string {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").slice(0, 8);
    return `${boot}.${/\d+/.exec(readlinkSync("/proc/self/ns/pid"))?.[0] ?? "0"}`;
  } catch {
    return "0.0";
  }
}

async function removeLock(files: FileOps, path: string): Promise<void> {
  try {
    await files.unlink(path);
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
}
