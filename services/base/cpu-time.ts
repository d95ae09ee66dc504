import { readdirSync, readFileSync } from "node:fs";

/** What Linux counts a second in. */
const TICK_MS = 10;

/** CPU time of this process and of its children, those that have ended too, in ms; elsewhere than on Linux its own. */
export function cpuTimeMs(): number {
  try {
    const own = timesOf("self");
    const children = readdirSync("/proc/self/task").flatMap((task) =>
      readFileSync(`/proc/self/task/${task}/children`, "latin1")
        .split(" ")
        .filter((pid) => pid !== ""),
    );
    return children.reduce((sum, pid) => sum + timesOrNothing(pid), own) * TICK_MS;
  } catch {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  }
}

/** Of the process and the children that it has seen end, in ticks (proc(5): utime, stime, cutime, cstime). */
function timesOf(pid: string): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  // Its name may hold anything.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0);
}

/** One that has just ended is among those that were seen to end, the next time. */
function timesOrNothing(pid: string): number {
  try {
    return timesOf(pid);
  } catch {
    return 0;
  }
}
