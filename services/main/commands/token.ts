import type { Command } from "commander";
import { Option } from "commander";
import { TributaryError } from "../../base/errors.js";
import { ROLES, type Role } from "../../tenancy/grant.js";
import { signToken } from "../../tenancy/tokens.js";
import { openKey } from "../compose/runtime.js";
import { configOf, type DataOptions, withData } from "./options.js";

interface TokenOptions extends DataOptions {
  readonly role: Role;
  readonly tenant: string[];
  readonly entityType?: string[];
  readonly subject: string;
  readonly expiresIn: string;
}

export function addTokenCommand(program: Command): void {
  withData(program.command("token"))
    .description("make a token with this data folder's key, and print it")
    .addOption(new Option("--role <role>", "what the token may do").choices([...ROLES]).makeOptionMandatory())
    .requiredOption("--tenant <id...>", "tenants it grants; '*' for all")
    .option("--entity-type <name...>", "entity types a producer may publish (default: all)")
    .option("--subject <name>", "who carries it", "cli")
    .option("--expires-in <time>", "how long it is valid: 30m, 12h, 7d", "24h")
    .action(async (options: TokenOptions) => {
      const config = configOf(options);
      const expiresIn = seconds(options.expiresIn);
      const token = await signToken(await openKey(config), config.auth.audience, {
        role: options.role,
        tenants: options.tenant.includes("*") ? "*" : options.tenant,
        ...(options.entityType === undefined ? {} : { entityTypes: options.entityType }),
        subject: options.subject,
        expiresIn,
      });
      console.log(options.json ? JSON.stringify({ token, expiresIn }) : token);
    });
}

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };

function seconds(text: string): number {
  const match = /^(\d+)([smhd])$/.exec(text);
  if (match === null)
    throw new TributaryError("TRB-CLI-USAGE", "--expires-in: expected a number and s, m, h or d");
  return Number(match[1]) * UNITS[match[2]!]!;
}
