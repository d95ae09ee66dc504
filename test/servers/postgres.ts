import { chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "pg";
import { command, freePort, startTool } from "./tool.js";

/** Where Debian puts the programs of each version. */
const PROGRAMS = "/usr/lib/postgresql";
/** Postgres refuses to be root; whoever is becomes nobody. */
const NOBODY = 65_534;
const asNobody = (program: string, args: readonly string[]): readonly [string, readonly string[]] => {
  if (process.getuid?.() !== 0) return [program, args];
  return ["setpriv", [`--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups", program, ...args]];
};

/** The Postgres of Debian's package, in a folder of its own, on loopback; what it holds is gone when it stops. */
export async function startPostgres(): Promise<{ readonly url: string; stop(): Promise<void> }> {
  const versions = existsSync(PROGRAMS) ? readdirSync(PROGRAMS) : [];
  const version = versions.map(Number).sort((a, b) => b - a)[0];
  if (version === undefined) throw new Error("no Postgres: install Debian's package postgresql");
  const programs = join(PROGRAMS, `${version}`, "bin");
  const run = mkdtempSync(join(tmpdir(), "tributary-postgres-"));
  const data = join(run, "data");
  mkdirSync(data, { mode: 0o700 });
  if (process.getuid?.() === 0) for (const folder of [run, data]) chownSync(folder, NOBODY, NOBODY);
  const flags = ["-D", data, "-U", "test", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale"];
  await command(...asNobody(join(programs, "initdb"), flags), run);
  const port = await freePort();
  const url = `postgres://test@127.0.0.1:${port}/postgres`;
  // It is never killed itself here, so that what it syncs would only take time.
  const settings = ["fsync=off", "max_connections=60", `unix_socket_directories=${run}`].flatMap((each) => [
    "-c",
    each,
  ]);
  const [program, args] = asNobody(join(programs, "postgres"), [
    "-D",
    data,
    "-h",
    "127.0.0.1",
    "-p",
    `${port}`,
    ...settings,
  ]);
  const ready = async () => {
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.end();
    return true;
  };
  const tool = await startTool({ program, args, log: join(run, "log"), ready });
  return {
    url,
    stop: async () => {
      await tool.stop();
      rmSync(run, { recursive: true, force: true });
    },
  };
}
