import { once } from "node:events";
import { createWriteStream, existsSync, mkdirSync, statSync, type WriteStream } from "node:fs";
import { dirname, join, resolve, sep } from "node:path";
import type { Command } from "commander";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { grouped } from "../../base/in-words.js";
import { tenantOf } from "../../bulk/jobs/job.js";
import { JobStore } from "../../bulk/jobs/job-store.js";
import { lineOf } from "../../bulk/jobs/mendable.js";
import { type KeptReject, readRejects, rejectJson } from "../../bulk/jobs/rejects.js";
import { audit } from "../../operate/audit-log.js";
import type { ObjectStore } from "../../storage/object-store.js";
import { readingDuck, withStore } from "../compose/runtime.js";
import { textTable } from "../terminal/text-table.js";
import { localUser } from "./local-user.js";
import { configOf, type DataOptions, positiveNumber, withData } from "./options.js";

interface ListOptions extends DataOptions {
  readonly limit: number;
}

interface ExportOptions extends DataOptions {
  readonly to: string;
}

/** Read at once. */
const PAGE = 1_000;

export function addRejectCommands(bootstrap: Command): void {
  const group = withData(bootstrap.command("rejects").argument("<id>"))
    .description("rows of a job that are no events: where they lie, why")
    .option("--limit <n>", "so many at most", positiveNumber, 100)
    .action(async (id: string, options: ListOptions) => {
      const { limit } = options;
      const some = await withRejects(id, configOf(options), async (pages) => {
        const found: KeptReject[] = [];
        for await (const page of pages) {
          found.push(...page.slice(0, limit - found.length));
          if (found.length === limit) break;
        }
        return found;
      });
      if (options.json) console.log(JSON.stringify({ id, rejects: some.map(rejectJson) }));
      else console.log(some.length === 0 ? "no rejects" : rejectsTable(some));
    });
  // Options of the command above would take those of its own.
  const exported = group.command("export").argument("<id>");
  withData(exported)
    .description("write them as NDJSON, to be mended and brought in by a job of the same mapping")
    .requiredOption("--to <file>", "a new file; or a folder, with a file in it for each of the source")
    .action(async (id: string, _: unknown, command: Command) => {
      const options = command.optsWithGlobals<ExportOptions>();
      const rows = await withRejects(id, configOf(options), (pages) => write(pages, options.to));
      if (options.json) console.log(JSON.stringify({ id, rows, to: options.to }));
      else console.log(`${grouped(rows)} rows written`);
    });
}

/** A page at a time. Errors: TRB-JOB-UNKNOWN. */
function withRejects<T>(
  id: string,
  config: Config,
  use: (pages: AsyncGenerator<readonly KeptReject[]>) => Promise<T>,
): Promise<T> {
  return withStore(config, async (store) => {
    const { order } = await new JobStore(store).get(id);
    const at = new Date().toISOString();
    const tenant = tenantOf(order);
    await audit(store, { at, by: localUser(), action: "bootstrap rejects", job: id, tenant });
    return use(pagesOf(store, id, config));
  });
}

async function* pagesOf(
  store: ObjectStore,
  id: string,
  { table: { checkpointEvery } }: Config,
): AsyncGenerator<readonly KeptReject[]> {
  const duck = await readingDuck();
  try {
    let after: string | undefined;
    do {
      const place = { limit: PAGE, ...(after === undefined ? {} : { after }) };
      const page = await readRejects({ store, duck, tableOptions: { checkpointEvery } }, id, place);
      yield page.rejects;
      after = page.next;
    } while (after !== undefined);
  } finally {
    duck.close();
  }
}

/** Nothing is written over: whoever mends a file must not lose it. Errors: TRB-CLI-USAGE. */
async function write(pages: AsyncIterable<readonly KeptReject[]>, to: string): Promise<number> {
  const isFolder = to.endsWith(sep) || (existsSync(to) && statSync(to).isDirectory());
  const files = new Map<string, WriteStream>();
  const fileFor = async (source: string): Promise<WriteStream> => {
    const path = isFolder ? join(to, `${safe(source)}.ndjson`) : resolve(to);
    const open = files.get(path);
    if (open !== undefined) return open;
    mkdirSync(dirname(path), { recursive: true });
    // Rows of customers: others on the machine see them only once their owner lets them.
    const file = createWriteStream(path, { flags: "wx", mode: 0o600 });
    await once(file, "open").catch((cause: unknown) => {
      throw new TributaryError("TRB-CLI-USAGE", "--to: expected a file that is not there yet", { cause });
    });
    files.set(path, file);
    return file;
  };
  let rows = 0;
  for await (const page of pages) {
    for (const reject of page) {
      const file = await fileFor(reject.source);
      if (!file.write(lineOf(reject))) await once(file, "drain");
      rows++;
    }
  }
  await Promise.all(
    [...files.values()].map(async (file) => {
      file.end();
      await once(file, "close");
    }),
  );
  return rows;
}

/** Below the folder, whatever the source's files are called. */
const safe = (source: string): string =>
  source
    .split("/")
    .filter((name) => name !== "" && name !== "." && name !== "..")
    .map((name) => name.replace(/[\\:\0]/g, "_"))
    .join("/");

const rejectsTable = (rejects: readonly KeptReject[]): string =>
  textTable(
    ["source", "row", "byte", "code", "reason", "record"],
    rejects.map(({ source, row, offset, code, message, bytes }) => {
      return [source, row, offset, code, message, Buffer.from(bytes.subarray(0, 200)).toString("utf8")];
    }),
  );
