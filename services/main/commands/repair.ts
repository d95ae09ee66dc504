import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import type { Config } from "../../base/config.js";
import { hasCode, TributaryError } from "../../base/errors.js";
import { printable } from "../../base/in-words.js";
import { CONSUMER } from "../../ingest/pipeline.js";
import { repairTable } from "../../ingest/repair.js";
import { loadModels } from "../../models/project.js";
import { readIngestStatus } from "../../status/ingest-status.js";
import {
  askForRepair,
  type RepairReport,
  takeRepairAnswer,
  withdrawRepair,
} from "../../status/repair-request.js";
import type { ObjectStore } from "../../storage/object-store.js";
import type { ChangeStreamReader } from "../../stream/change-stream.js";
import { domainOf } from "../../stream/domains.js";
import { lockData, openReader, readingDuck, withStore } from "../compose/runtime.js";
import { configOf, type DataOptions, withData } from "./options.js";

/** A running ingest looks for requests every second; a repair itself may read a whole table. */
const TAKEN_UP_MS = 30_000;
const DONE_MS = 3_600_000;
/** Ingest writes its status at least so often. */
const RUNNING_MS = 60_000;
const POLL_MS = 100;

interface RepairOptions extends DataOptions {
  readonly dryRun?: boolean;
}

export function addRepairCommand(program: Command): void {
  const tables = program.commands.find((command) => command.name() === "table")!;
  withData(tables.command("repair").argument("<table>", "e.g. scm.files or raw/scm.v1.File"))
    .description(
      "find what is wrong with a table and mend it without loss; exit code 1 when something is left",
    )
    .option("--dry-run", "only tell what would be done")
    .action(async (name: string, options: RepairOptions) => {
      const dryRun = options.dryRun === true;
      const config = configOf(options);
      const report = await withStore(config, (store) => repair(config, store, name, dryRun));
      if (options.json === true) console.log(JSON.stringify({ ...report, dryRun }));
      else print(report, dryRun);
      if (report.left.length > 0) process.exitCode = 1;
    });
}

/** Ingest alone writes tables: where it runs it does the work, where not its lock is held meanwhile. */
async function repair(
  config: Config,
  store: ObjectStore,
  name: string,
  dryRun: boolean,
): Promise<RepairReport> {
  if (dryRun) return repairHere(config, store, name, true);
  if (config.stream.kind !== "embedded" && (await isIngestRunning(store))) return repairThere(store, name);
  const lock = await lockData(config, "ingest").catch((error: unknown) => {
    if (hasCode(error, "TRB-STREAM-LOCKED")) return undefined;
    throw error;
  });
  if (lock === undefined) return repairThere(store, name);
  try {
    return await repairHere(config, store, name, false);
  } finally {
    await lock.release();
  }
}

/** As far as what it writes now and then tells: its workers may be on other machines. */
const isIngestRunning = async (store: ObjectStore): Promise<boolean> => {
  const status = await readIngestStatus(store);
  return status !== undefined && Date.now() - Date.parse(status.writtenAt) < RUNNING_MS;
};

async function repairHere(
  config: Config,
  store: ObjectStore,
  name: string,
  dryRun: boolean,
): Promise<RepairReport> {
  const reader = await readerFor(config, name);
  const duck = await readingDuck();
  try {
    const parts = {
      store,
      duck,
      tableOptions: { checkpointEvery: config.table.checkpointEvery },
      models: loadModels(config.transformsDir),
      stream: reader?.name ?? "",
      lowWater: (await reader?.lowWater(CONSUMER)) ?? new Map<string, string>(),
    };
    return await repairTable(parts, name, dryRun);
  } finally {
    duck.close();
    await reader?.close();
  }
}

/** The stream that a raw table's events come by; undefined for other tables, which are mended without. */
async function readerFor(config: Config, name: string): Promise<ChangeStreamReader | undefined> {
  const entityType = /^raw\/(.+)$/.exec(name)?.[1];
  return entityType === undefined ? undefined : openReader(config, domainOf(entityType));
}

async function repairThere(store: ObjectStore, name: string): Promise<RepairReport> {
  const id = randomUUID();
  await askForRepair(store, id, name);
  for (const asked = performance.now(); ; await sleep(POLL_MS)) {
    const answer = await takeRepairAnswer(store, id);
    if (answer !== undefined) {
      if ("report" in answer) return answer.report;
      throw new TributaryError("TRB-STORE-FAILED", `ingest could not repair "${name}": ${answer.failed}`);
    }
    const waited = performance.now() - asked;
    if (waited > DONE_MS || (waited > TAKEN_UP_MS && (await withdrawRepair(store, id)))) {
      throw new TributaryError("TRB-STORE-FAILED", "a running ingest holds the tables and does not answer");
    }
  }
}

function print({ table, found, done, left }: RepairReport, dryRun: boolean): void {
  if (found.length === 0 && left.length === 0) {
    console.log(`${table}: nothing is wrong with its files${dryRun ? "" : "; ingest tries it again now"}`);
  }
  for (const line of found) console.log(printable(`found: ${line}`));
  for (const line of done) console.log(printable(`${dryRun ? "would do" : "done"}: ${line}`));
  for (const line of left) console.log(printable(`left: ${line}`));
}
