import { type DuckDBConnection, DuckDBInstance } from "@duckdb/node-api";
import { assert } from "./errors.js";

const MiB = 1024 * 1024;

/** What a closed engine must say of itself before it meets anything of a stranger's. */
const WALLS: Readonly<Record<string, string>> = {
  enable_external_access: "false",
  autoinstall_known_extensions: "false",
  autoload_known_extensions: "false",
  allow_community_extensions: "false",
  allow_persistent_secrets: "false",
  temp_directory: "",
  threads: "1",
  lock_configuration: "true",
};

/** An engine for what strangers wrote: one thread, bounded memory, no disk to spill to, no extensions. Not closed yet. */
export const strangersEngine = (memoryBytes: number): Promise<DuckDBInstance> =>
  DuckDBInstance.create(":memory:", {
    threads: "1",
    memory_limit: `${Math.ceil(memoryBytes / MiB)}MiB`,
    temp_directory: "",
    autoinstall_known_extensions: "false",
    autoload_known_extensions: "false",
    allow_community_extensions: "false",
    allow_persistent_secrets: "false",
    enable_external_file_cache: "false",
  });

/**
 * Closes the engine for good: no files, no network, no settings. `paths` are files that it may go on to use, and may
 * then write as well as read. Errors: an assertion where it is not closed then, whatever the engine said.
 */
export async function shut(connection: DuckDBConnection, paths: readonly string[] = []): Promise<void> {
  if (paths.length > 0)
    await connection.run(
      `SET allowed_paths=[${paths.map((path) => `'${path.replaceAll("'", "''")}'`).join(", ")}]`,
    );
  await connection.run("SET enable_external_access=false");
  if (paths.length === 0) await connection.run("SET disabled_filesystems='LocalFileSystem'");
  await connection.run("SET lock_configuration=true");
  const rows = (await connection.runAndReadAll("SELECT name, value FROM duckdb_settings()")).getRows();
  const settings = new Map(rows.map(([name, value]) => [name, value]));
  for (const [name, value] of Object.entries(WALLS)) {
    assert(settings.get(name) === value, `the sandbox is closed: ${name}`);
  }
}
