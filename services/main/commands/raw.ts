import type { Command } from "commander";
import { Duck } from "../../base/duckdb.js";
import { printable } from "../../base/in-words.js";
import { layout } from "../../base/paths.js";
import { entityHistory, type History, type PastEvent } from "../../bulk/entity-history.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { Offloaded } from "../../offload/offloaded.js";
import { withStore } from "../compose/runtime.js";
import { localUser } from "./local-user.js";
import { configOf, type DataOptions, positiveNumber, withData } from "./options.js";

interface ShowOptions extends DataOptions {
  readonly tenant: string;
  readonly type: string;
  readonly id: string;
  readonly limit: number;
  readonly resolve?: boolean;
}

const MEMORY_BYTES = 512 * 1024 * 1024;

export function addRawCommands(program: Command): void {
  const group = program.command("raw").description("change events as they landed, for operators");
  withData(group.command("show"))
    .description("print all that is known of one entity, event by event; the audit log keeps who looked")
    .requiredOption("--tenant <id>", "whose entity")
    .requiredOption("--type <name>", "its type, e.g. scm.v1.File")
    .requiredOption("--id <id>", "its id")
    .option("--limit <n>", "the newest so many events", positiveNumber, 1000)
    .option("--resolve", "fetch and check payloads that did not travel with their events")
    .action(show);
}

async function show({ tenant, type: entityType, id: entityId, ...options }: ShowOptions): Promise<void> {
  const config = configOf(options);
  const registry = ProtoRegistry.load(config.protoDirs, config.protoDescriptors);
  const history = await withStore(config, async (store) => {
    const duck = await Duck.create({ memoryBytes: MEMORY_BYTES, tempFolder: layout(config.data).scratch });
    try {
      return await entityHistory(
        { store, duck, registry, payloads: new Offloaded(store, config.offload.keepMs) },
        { tenant, entityType, entityId },
        { by: localUser(), limit: options.limit, resolve: options.resolve === true },
      );
    } finally {
      duck.close();
    }
  });
  if (options.json === true) console.log(JSON.stringify({ tenant, entityType, entityId, ...history }));
  else print(history);
}

function print({ events, shown }: History): void {
  if (events === 0) console.log("no event of this entity has landed");
  else if (shown.length < events) console.log(`the newest ${shown.length} of ${events} events\n`);
  for (const event of shown) console.log(textOf(event));
}

function textOf(event: PastEvent): string {
  const { payload, payloadReference, fault, attributes } = event;
  const lines = [
    [
      event.wins ? "→" : " ",
      event.receivedAt,
      event.operation,
      `v${event.version}`,
      `${event.stream}/${event.partition}/${event.position}`,
      ...(event.occurredAt === undefined ? [] : [`occurred ${event.occurredAt}`]),
      ...(event.eventId === undefined ? [] : [`event ${event.eventId}`]),
    ].join("  "),
    ...(Object.keys(attributes).length === 0 ? [] : [`    ${JSON.stringify(attributes)}`]),
    ...(payloadReference === undefined
      ? []
      : [`    at ${payloadReference.uri}, ${payloadReference.sizeBytes} bytes`]),
    ...(payload === undefined ? [] : [`    ${JSON.stringify(payload)}`]),
    ...(fault === undefined ? [] : [`    ${fault.code}: ${fault.reason ?? "no table has it"}`]),
  ];
  return lines.map(printable).join("\n");
}
