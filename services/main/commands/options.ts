import { type Command, InvalidArgumentError, Option } from "commander";
import { type Config, loadConfig } from "../../base/config.js";

/** Options that several commands share, spelled alike everywhere. */

export interface DataOptions {
  readonly data?: string;
  readonly config?: string;
  readonly json?: boolean;
}

export interface ServerOptions extends DataOptions {
  readonly port?: number;
  readonly host?: string;
  readonly domain?: readonly string[];
}

export interface ClientOptions {
  readonly url: string;
  readonly token: string;
  readonly json?: boolean;
}

/** Reads digits alone: what Number() takes beside them ("", "1e3", "0x10", " 5") is a slip of the hand here. */
const wholeNumber =
  (expected: string, min: number, max: number) =>
  (text: string): number => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw new InvalidArgumentError(`expected ${expected}`);
    return value;
  };

export const positiveNumber = wholeNumber("a whole number, 1 or more", 1, Number.MAX_SAFE_INTEGER);
export const limitNumber = wholeNumber("a whole number, 0 or more", 0, Number.MAX_SAFE_INTEGER);
export const portNumber = wholeNumber("a port, 0 to 65535", 0, 65_535);

/** Of bulk jobs. */
export function priorityNumber(text: string): number {
  if (/^-?\d{1,3}$/.test(text) && Math.abs(Number(text)) <= 100) return Number(text);
  throw new InvalidArgumentError("expected a whole number, -100 to 100");
}

function shareNumber(text: string): number {
  const share = /^(0?\.\d+|1)$/.test(text) ? Number(text) : 0;
  if (share > 0) return share;
  throw new InvalidArgumentError("expected more than 0, at most 1, such as 0.25");
}

export interface LimitOptions {
  readonly rowsPerSecond?: number;
  readonly bytesPerSecond?: number;
  readonly cpuShare?: number;
}

/** What a bulk job may take. */
export const withLimits = (command: Command): Command =>
  command
    .option("--rows-per-second <n>", "no more of its rows", positiveNumber)
    .option("--bytes-per-second <n>", "no more of what it reads", positiveNumber)
    .option("--cpu-share <share>", "no more of the machine's cores, e.g. 0.25", shareNumber);

/** Undefined where there are none. */
export function limitsOf({
  rowsPerSecond,
  bytesPerSecond,
  cpuShare,
}: LimitOptions): LimitOptions | undefined {
  const limits = { rowsPerSecond, bytesPerSecond, cpuShare };
  const given = Object.entries(limits).filter(([, value]) => value !== undefined);
  return given.length === 0 ? undefined : Object.fromEntries(given);
}

/** ISO 8601, a day or an instant; as an instant of UTC. */
export function timeOf(text: string): string {
  const instant = /^\d{4}-\d\d-\d\d(T|$)/.test(text) ? new Date(text) : new Date(Number.NaN);
  if (Number.isNaN(instant.getTime()))
    throw new InvalidArgumentError("expected a time such as 2026-01-31 or 2026-01-31T12:00:00Z");
  return instant.toISOString();
}

export const withData = (command: Command): Command =>
  command
    .option("--data <dir>", "data folder (default: ./data)")
    .option("--config <file>", "configuration file (default: tributary.yaml where there is one)")
    .option("--json", "answer in JSON");

export const withServer = (command: Command): Command =>
  withData(command)
    .option("--port <n>", "port; 0 = any free one (default: 8080)", portNumber)
    .option("--host <host>", "address to listen on (default: 127.0.0.1)");

export const withClient = (command: Command): Command =>
  command
    .addOption(new Option("--url <url>", "base URL of the server").env("TRIBUTARY_URL").makeOptionMandatory())
    // Read from the environment by commander, so that --help names the variable and never shows what it holds.
    .addOption(new Option("--token <token>", "bearer token").env("TRIBUTARY_TOKEN").makeOptionMandatory())
    .option("--json", "answer in JSON");

export function configOf(options: ServerOptions): Config {
  const http = {
    ...(options.port === undefined ? {} : { port: options.port }),
    ...(options.host === undefined ? {} : { host: options.host }),
  };
  return loadConfig(
    {
      ...(options.data === undefined ? {} : { data: options.data }),
      ...(options.domain === undefined ? {} : { ingest: { domains: options.domain } }),
      http,
    },
    options.config === undefined ? {} : { file: options.config },
  );
}
