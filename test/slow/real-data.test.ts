import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readForeign } from "../support/foreign.js";
import { Oracle } from "../support/oracle.js";
import { actualRow, digestOf } from "../support/oracle-tables.js";
import { changeLogs } from "../support/shared-data.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, untilLanded } from "../support/stack.js";

const logs = changeLogs();
const lines = logs.flatMap((log) => log.lines);
const SEED = Number(process.env.TEST_SEED ?? Date.now() % 1_000_000);

function shuffledWithDuplicates(): string[] {
  let state = SEED;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const all = [...lines, ...lines.filter(() => random() < 0.3)];
  for (let i = all.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [all[i], all[j]] = [all[j]!, all[i]!];
  }
  return all;
}

/** Events a request; one at a time takes long, and only where order and duplicates are at their worst. */
const ARRANGEMENTS: readonly [string, () => string[], readonly number[]][] = [
  ["in order", () => lines, [7, 1000]],
  ["reversed", () => lines.toReversed(), [7, 1000]],
  ["shuffled, with 30 % duplicates", shuffledWithDuplicates, [1, 7, 1000]],
];

/** I3, I4 and I6: git is the oracle, by the figures of the data's README and by its events; deltalake is the reader. */
describe.each(ARRANGEMENTS)(`real change logs, %s (seed ${SEED})`, (_, arrange, batches) => {
  const oracle = new Oracle();
  let folder: string;
  let input: string;
  let events: number;

  beforeAll(async () => {
    folder = await temporaryFolder();
    input = join(folder, "events.ndjson");
    const arranged = arrange();
    events = arranged.length;
    await writeFile(input, `${arranged.join("\n")}\n`);
    for (const line of lines) oracle.applyLine(line);
  });
  afterAll(() => removeFolder(folder));

  it.each(batches)("published %i events a request: the tables are what git says", async (batch) => {
    const data = join(folder, `data-${batch}`);
    const server = await Server.start("up", data);
    try {
      const token = await makeToken(data, "producer");
      const args = [
        "publish",
        input,
        "--url",
        server.url,
        "--token",
        token,
        "--batch",
        String(batch),
        "--json",
      ];
      const published = await cli(args);
      expect(published.stderr, published.stdout).not.toContain("TRB-");
      expect(JSON.parse(published.stdout)).toMatchObject({ accepted: events, rejected: 0 });
      await untilLanded(data);
      await check(data, oracle, events);
    } finally {
      expect(await server.stop()).toBe(0);
    }
  });
});

async function check(data: string, oracle: Oracle, events: number): Promise<void> {
  const lake = join(data, "lake");
  const files = await readForeign(join(lake, "refined", "scm", "files"));
  const commits = await readForeign(join(lake, "refined", "scm", "commits"));
  expect(digestOf(files.map((row) => actualRow("scm.files", row)))).toBe(oracle.digest("scm.files"));
  expect(digestOf(commits.map((row) => actualRow("scm.commits", row)))).toBe(oracle.digest("scm.commits"));
  const sum = (rows: Record<string, unknown>[], column: string) =>
    rows.reduce((total, row) => total + Number(row[column]), 0);
  for (const { name, answers } of logs) {
    const own = files.filter((row) => row.tenant_id === name);
    expect(own.length).toBe(answers.liveFiles);
    expect(sum(own, "lines_added")).toBe(answers.linesAdded);
    expect(sum(own, "change_count")).toBe(answers.changeCount);
    const history = commits.filter((row) => row.tenant_id === name);
    expect(history.length).toBe(answers.commits);
    expect(sum(history, "insertions")).toBe(answers.insertions);
  }
  let raw = 0;
  for (const type of ["scm.v1.File", "scm.v1.Commit"]) {
    const [row] = await readForeign(join(lake, "raw", type), "SELECT count(*) AS n FROM t");
    raw += Number(row!.n);
  }
  expect(raw).toBe(events);
  const verified = await cli(["table", "verify", "--data", data, "--json"]);
  expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, problems: [] });
}
