import { type Command, InvalidArgumentError, Option } from "commander";
import { TributaryError } from "../../base/errors.js";
import { ROLES, type Role } from "../../tenancy/grant.js";
import { signToken } from "../../tenancy/tokens.js";
import { hasKey, openKey } from "../compose/runtime.js";
import { configOf, type DataOptions, withData } from "./options.js";

interface TokenOptions extends DataOptions {
  readonly role: Role;
  readonly tenant: string[];
  readonly entityType?: string[];
  readonly subject: string;
  readonly expiresIn: number;
  readonly create?: boolean;
}

export function addTokenCommand(program: Command): void {
  withData(program.command("token"))
    .description("make a token with this data folder's key, and print it")
    .addOption(new Option("--role <role>", "what the token may do").choices([...ROLES]).makeOptionMandatory())
    .requiredOption("--tenant <id...>", "tenants it grants; '*' for all")
    .option("--entity-type <name...>", "entity types a producer may publish (default: all)")
    .option("--subject <name>", "who carries it", "cli")
    .addOption(
      new Option("--expires-in <time>", "how long it is valid: 30m, 12h, 7d")
        .argParser(seconds)
        .default(24 * 3600, "24h"),
    )
    .option("--create", "make the data folder's key where there is none yet; else `up` makes it")
    .action(async (options: TokenOptions) => {
      const config = configOf(options);
      const tenants = tenantsOf(options.tenant);
      if (!(options.create || hasKey(config))) {
        throw new TributaryError(
          "TRB-CLI-USAGE",
          "--data: expected a data folder that has been started once, found no key there (--create makes one)",
        );
      }
      const token = await signToken(await openKey(config), config.auth.audience, {
        role: options.role,
        tenants,
        ...(options.entityType === undefined ? {} : { entityTypes: options.entityType }),
        subject: options.subject,
        expiresIn: options.expiresIn,
      });
      console.log(options.json ? JSON.stringify({ token, expiresIn: options.expiresIn }) : token);
    });
}

/** Names beside "*" would be lost in it, and who wrote them meant less than all. Errors: TRB-CLI-USAGE. */
function tenantsOf(names: readonly string[]): "*" | readonly string[] {
  if (!names.includes("*")) return names;
  if (names.length === 1) return "*";
  throw new TributaryError("TRB-CLI-USAGE", "--tenant: expected '*' alone, or tenants by name");
}

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };
const TEN_YEARS = 3650 * 86_400;

function seconds(text: string): number {
  const match = /^(\d{1,9})([smhd])$/.exec(text);
  const value = match === null ? 0 : Number(match[1]) * UNITS[match[2]!]!;
  if (value < 1 || value > TEN_YEARS)
    throw new InvalidArgumentError("expected a number and s, m, h or d, from 1s to 3650d");
  return value;
}
