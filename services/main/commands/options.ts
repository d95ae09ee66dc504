import { type Command, InvalidArgumentError } from "commander";
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
}

export interface ClientOptions {
  readonly url: string;
  readonly token: string;
  readonly json?: boolean;
}

export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0)
    throw new InvalidArgumentError("expected a whole number, 0 or more");
  return value;
}

export function portNumber(text: string): number {
  const value = wholeNumber(text);
  if (value > 65_535) throw new InvalidArgumentError("expected a port, 0 to 65535");
  return value;
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
    .requiredOption("--url <url>", "base URL of the server", process.env.TRIBUTARY_URL)
    .requiredOption("--token <token>", "bearer token", process.env.TRIBUTARY_TOKEN)
    .option("--json", "answer in JSON");

export function configOf(options: ServerOptions): Config {
  const http = {
    ...(options.port === undefined ? {} : { port: options.port }),
    ...(options.host === undefined ? {} : { host: options.host }),
  };
  return loadConfig(
    { ...(options.data === undefined ? {} : { data: options.data }), http },
    options.config === undefined ? {} : { file: options.config },
  );
}
