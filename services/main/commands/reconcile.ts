import type { Command } from "commander";
import { JobDesk } from "../../bulk/job-desk.js";
import { jobJson } from "../../bulk/jobs/job.js";
import { watermarkOf } from "../../bulk/watermark.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { domainOf } from "../../stream/domains.js";
import { openReader, readingDuck, withStore } from "../compose/runtime.js";
import { jobLines } from "./job-view.js";
import { localUser } from "./local-user.js";
import { configOf, type DataOptions, limitNumber, withData } from "./options.js";

interface WatermarkOptions extends DataOptions {
  readonly type: string;
}

interface ConfirmOptions extends DataOptions {
  readonly count: number;
  readonly asOf: number;
}

export function addReconcileCommands(bootstrap: Command): void {
  withData(bootstrap.command("watermark"))
    .description("print how far raw and the stream are, to be taken before an export begins")
    .requiredOption("--type <name>", "entity type of what is to be exported, e.g. scm.v1.File")
    .action(printWatermark);
  withData(bootstrap.command("confirm").argument("<id>"))
    .description("let a job delete what it has found that its export lacks; it goes on then")
    .requiredOption("--count <n>", "how many entities, as its status tells", limitNumber)
    .requiredOption("--as-of <version>", "as of which version of raw, as its status tells", limitNumber)
    .action(async (id: string, options: ConfirmOptions) => {
      const { count, asOf } = options;
      const job = await withStore(configOf(options), (store) =>
        new JobDesk(store).confirm(id, { count, asOf }, localUser()),
      );
      console.log(options.json ? JSON.stringify(jobJson(job)) : jobLines(job));
    });
}

async function printWatermark(options: WatermarkOptions): Promise<void> {
  const config = configOf(options);
  const registry = ProtoRegistry.load(config.protoDirs, config.protoDescriptors);
  const tableOptions = { checkpointEvery: config.table.checkpointEvery };
  const reader = await openReader(config, domainOf(options.type));
  const duck = await readingDuck();
  try {
    const watermark = await withStore(config, (store) =>
      watermarkOf({ store, duck, tableOptions, registry }, options.type, reader),
    );
    console.log(JSON.stringify(watermark));
  } finally {
    duck.close();
    await reader.close();
  }
}
