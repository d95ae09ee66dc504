import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { TributaryError } from "../../base/errors.js";
import { nodeFiles, replaceDurably } from "../../base/files.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import type { Change } from "../../follow/change.js";
import { type FollowedTo, follow } from "../../follow/follow.js";
import { domainOf } from "../../stream/domains.js";
import { openPayloads, openReader } from "../compose/runtime.js";
import { configOf, type DataOptions, withData } from "./options.js";
import { stopSignal } from "./stop-signal.js";

interface TailOptions extends DataOptions {
  readonly from: "oldest" | "next";
  readonly tenant?: string;
  readonly type?: string;
  readonly domain?: string;
  readonly checkpoint?: string;
  /** False: ends at the head. */
  readonly follow: boolean;
}

export function addTailCommand(program: Command): void {
  withData(program.command("tail"))
    .description("show change events as they come, of all tenants; disturbs nobody who reads them too")
    .addOption(
      new Option("--from <where>", "where to begin").choices(["oldest", "next"]).default("next", "next"),
    )
    .option("--tenant <id>", "only this tenant's")
    .option("--type <name>", "only of this entity type, e.g. scm.v1.File")
    .option(
      "--domain <name>",
      "the product domain, where each has a stream of its own (default: that of --type)",
    )
    .option("--checkpoint <file>", "go on where this file says, and keep it up to date")
    .option("--no-follow", "end with the newest event instead of waiting for more")
    .action(tail);
}

async function tail({ domain, ...options }: TailOptions): Promise<void> {
  const config = configOf(options);
  const { tenant, type, checkpoint } = options;
  const registry = ProtoRegistry.load(config.protoDirs, config.protoDescriptors);
  const reader = await openReader(config, domain ?? (type === undefined ? undefined : domainOf(type)));
  try {
    const changes = follow({
      reader,
      registry,
      payloads: openPayloads(config),
      from: savedIn(checkpoint) ?? options.from,
      wanted: (about) =>
        (tenant === undefined || about.tenantId === tenant) &&
        (type === undefined || about.entityType === type),
      untilHead: !options.follow,
      signal: stopSignal(),
    });
    let saved: FollowedTo | undefined;
    for await (const { changes: read, unreadable, to } of changes) {
      for (const change of read) await print(options.json ? jsonOf(change) : textOf(change));
      if (unreadable > 0) console.error(`(${unreadable} that cannot be read)`);
      if (checkpoint !== undefined && to !== saved) {
        // Only now: who reads the output may have gone.
        await replaceDurably(nodeFiles, resolve(checkpoint), Buffer.from(JSON.stringify(to)));
        saved = to;
      }
    }
  } finally {
    await reader.close();
  }
}

/** Waits while nobody takes the output: what is shown is never ahead of what is read. */
function print(line: string): Promise<void> {
  if (process.stdout.write(`${line}\n`)) return Promise.resolve();
  return new Promise((done) => process.stdout.once("drain", done));
}

/** Errors: TRB-CLI-USAGE. */
function savedIn(file: string | undefined): FollowedTo | undefined {
  if (file === undefined || !existsSync(file)) return undefined;
  try {
    const { stream, positions } = JSON.parse(readFileSync(file, "utf8")) as FollowedTo;
    if (typeof stream === "string" && Object.values(positions).every((each) => typeof each === "string")) {
      return { stream, positions };
    }
  } catch {
    // Told below.
  }
  throw new TributaryError(
    "TRB-CLI-USAGE",
    "--checkpoint: expected a file that `tributary tail` has written",
  );
}

const jsonOf = (change: Change): string => {
  const { payloadBytes: _, attributes, version, receivedAt, ...rest } = change;
  return JSON.stringify({
    ...rest,
    version: String(version),
    attributes: Object.fromEntries(attributes),
    receivedAt: new Date(receivedAt).toISOString(),
  });
};

const textOf = ({ receivedAt, tenantId, entityType, entityId, operation, version, ...at }: Change): string =>
  [
    new Date(receivedAt).toISOString(),
    tenantId,
    entityType,
    JSON.stringify(entityId),
    operation,
    `v${version}`,
    `${at.partition}/${at.position}`,
    ...(at.payloadFault === undefined ? [] : [`${at.payloadFault.code}: ${at.payloadFault.reason}`]),
  ].join("  ");
