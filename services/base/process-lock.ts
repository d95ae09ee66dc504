import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { TributaryError } from "./errors.js";
import type { FileOps } from "./files.js";
import { isAbsent } from "./files.js";

export interface ProcessLock {
  release(): Promise<void>;
}

/**
 * One live process per `name` in `folder`. Errors: TRB-STREAM-LOCKED.
 *
 * Each contender announces itself with a file whose name tells who it is and is never used again, then looks for
 * others: whoever sees a live one withdraws. Of two that start together at least one sees the other, so two never
 * hold it; a file left by a dead process can be removed by anyone without a race, as nobody can take it over.
 * Two processes that cannot see each other's ids (containers with their own process space) are not kept apart.
 */
export async function acquireLock(files: FileOps, folder: string, name: string): Promise<ProcessLock> {
  const mine = `${name}@${process.pid}-${processStart(process.pid) ?? "0"}-${bootId()}-${randomBytes(4).toString("hex")}.lock`;
  const path = join(folder, mine);
  for (let attempt = 1; ; attempt++) {
    await (await files.open(path, "create")).close();
    const others = (await files.list(folder)).filter(
      (entry) => entry.name !== mine && entry.name.startsWith(`${name}@`) && entry.name.endsWith(".lock"),
    );
    let live = false;
    for (const other of others) {
      if (isLive(other.name)) live = true;
      else await removeLock(files, join(folder, other.name));
    }
    if (!live) return { release: () => removeLock(files, path) };
    await removeLock(files, path);
    // Two that met while starting both withdrew; a random pause lets one of them through.
    if (attempt === 4) throw new TributaryError("TRB-STREAM-LOCKED");
    await sleep(5 + Math.random() * 40);
  }
}

function isLive(fileName: string): boolean {
  const match = /@(\d+)-(\d+)-([0-9a-f]+)-[0-9a-f]+\.lock$/.exec(fileName);
  if (match === null) return true; // not one of ours to judge
  const pid = Number(match[1]);
  if (match[3] !== bootId()) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
  }
  // The id may have been given to a newer process; then the start time differs.
  const start = processStart(pid);
  return start === undefined || start === match[2];
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

function bootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "latin1").slice(0, 8);
  } catch {
    return "0";
  }
}

async function removeLock(files: FileOps, path: string): Promise<void> {
  try {
    await files.unlink(path);
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
}
