import { join } from "node:path";
import { TributaryError } from "./errors.js";
import { ensureFolder, type FileOps, readWhole, replaceDurably } from "./files.js";
import { layout, packageVersion } from "./paths.js";
import { acquireLock, waitForLock } from "./process-lock.js";

/** What a data folder says of itself, in DIR/format.json. */
interface DataFormat {
  readonly format: number;
  /** Version of the Tributary that first wrote this format here. */
  readonly writer: string;
}

/**
 * Brings a folder from one format to the next. Runs while no other process of this version uses the folder, and once
 * more after a crash in the middle of it.
 */
export type UpgradeStep = (folder: string, files: FileOps) => Promise<void>;

/**
 * steps[n] leads from format n to n + 1; format 0 is a folder from before formats were counted. A change of what lies
 * on disk that an older version would misread gets a step here, also an empty one.
 */
export const UPGRADES: readonly UpgradeStep[] = [
  // 1: segments of the log may be fenced, files are staged in DIR/staging. Both are made as they are needed.
  async () => undefined,
  // 2: events are parked in the lake. What an earlier version has parked only that one can land.
  async (folder, files) => {
    const parked = join(folder, "parked");
    if ((await files.stat(parked)) === undefined) return;
    for (const { name } of await files.list(parked)) {
      if ((await files.list(join(parked, name))).length === 0) continue;
      throw new TributaryError(
        "TRB-DATA-VERSION",
        `an earlier version has parked events of ${name}: run that one until \`tributary table ls\` shows nothing parked`,
      );
    }
  },
];

const FILE = "format.json";
const LOCK_WAIT_MS = 60_000;

/** Refuses a folder of a newer format. Errors: TRB-DATA-VERSION, TRB-CONFIG for a damaged format.json. */
export async function checkData(files: FileOps, folder: string, steps = UPGRADES): Promise<void> {
  await readFormat(files, folder, steps);
}

/**
 * Readies a data folder for this version: says in a new one what it is, upgrades an older one step by step.
 * Durable when resolved. Errors: TRB-DATA-VERSION, TRB-CONFIG, TRB-STREAM-LOCKED when another process is at it for long.
 */
export async function openData(files: FileOps, folder: string, steps = UPGRADES): Promise<void> {
  await ensureFolder(files, folder);
  if ((await readFormat(files, folder, steps)) === steps.length) return;
  const lock = await waitForLock(LOCK_WAIT_MS, () => acquireLock(files, folder, "upgrade"));
  try {
    let format = await readFormat(files, folder, steps);
    if (format === undefined) format = (await isNew(files, folder)) ? steps.length : 0;
    for (; format < steps.length; format++) {
      await steps[format]!(folder, files);
      await writeFormat(files, folder, format + 1);
    }
    if ((await readFormat(files, folder, steps)) === undefined) await writeFormat(files, folder, format);
  } finally {
    await lock.release();
  }
}

async function isNew(files: FileOps, folder: string): Promise<boolean> {
  const { stream, lake } = layout(folder);
  return (await files.stat(stream)) === undefined && (await files.stat(lake)) === undefined;
}

async function writeFormat(files: FileOps, folder: string, format: number): Promise<void> {
  const content: DataFormat = { format, writer: packageVersion };
  await replaceDurably(files, join(folder, FILE), Buffer.from(`${JSON.stringify(content)}\n`));
}

/** Undefined when the folder says nothing. */
async function readFormat(
  files: FileOps,
  folder: string,
  steps: readonly UpgradeStep[],
): Promise<number | undefined> {
  const bytes = await readWhole(files, join(folder, FILE));
  if (bytes === undefined) return undefined;
  let found: Partial<DataFormat> | undefined;
  try {
    found = JSON.parse(bytes.toString("utf8")) as Partial<DataFormat>;
  } catch {
    found = undefined;
  }
  const { format, writer } = found ?? {};
  if (typeof format !== "number" || !Number.isSafeInteger(format) || typeof writer !== "string") {
    throw new TributaryError("TRB-CONFIG", `${FILE}: expected {"format": number, "writer": version}`);
  }
  if (format > steps.length) {
    throw new TributaryError(
      "TRB-DATA-VERSION",
      `${FILE}: expected at most format ${steps.length}, which Tributary ${packageVersion} knows, found ${format}, written by ${writer}`,
    );
  }
  return format;
}
