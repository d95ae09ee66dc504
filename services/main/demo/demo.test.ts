import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { GitSandbox } from "../../../test/support/git-sandbox.js";
import { Oracle } from "../../../test/support/oracle.js";
import { columnsOf, TABLE_NAMES } from "../../../test/support/oracle-tables.js";
import { Duck, rowsOf } from "../../base/duckdb.js";
import { encodeRequest } from "../../contracts/encode-event.js";
import { frames } from "../../contracts/envelope.js";
import { type DemoOptions, type DemoStack, runDemo } from "./demo.js";

/** Stands in for the stack: the oracle keeps the events, DuckDB answers from its rows. */
class OracleStack implements DemoStack {
  url = "";
  data = "";
  closed = false;
  /** Events to lose, by their place in the order of arrival. */
  lost = new Set<number>();
  private readonly scratch = mkdtempSync(join(tmpdir(), "tributary-oracle-"));
  private readonly oracle = new Oracle();
  private readonly server: Server;
  private events = 0;

  constructor(readonly duck: Duck) {
    this.server = createServer(async (request, response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk as Buffer);
      const body = Buffer.concat(chunks);
      if (request.url === "/v1/events") {
        response.setHeader("content-type", "application/x-protobuf");
        response.end(this.take(body));
      } else {
        const { sql, tenant } = JSON.parse(body.toString()) as { sql: string; tenant: string };
        response.end(JSON.stringify({ rows: await this.ask(sql, tenant) }));
      }
    });
  }

  async start(data: string): Promise<this> {
    this.data = data;
    await new Promise<void>((done) => this.server.listen(0, "127.0.0.1", done));
    this.url = `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
    return this;
  }

  token(role: string): Promise<string> {
    return Promise.resolve(`token-${role}`);
  }

  async close(): Promise<void> {
    this.closed = true;
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
    rmSync(this.scratch, { recursive: true, force: true });
  }

  private take(body: Buffer): Buffer {
    const found = frames(body)!;
    const kept: Buffer[] = [];
    for (let i = 0; i < found.count; i++) {
      if (!this.lost.has(this.events++)) kept.push(body.subarray(found.starts[i]!, found.ends[i]!));
    }
    this.oracle.applyRequest(encodeRequest(kept));
    // PublishResponse.accepted, as a varint of two bytes.
    return Buffer.from([16, (found.count & 127) | 128, found.count >> 7]);
  }

  private ask(sql: string, tenant: string): Promise<unknown[][]> {
    return this.duck.with(async (connection) => {
      for (const table of TABLE_NAMES) {
        const path = join(this.scratch, `${table}.json`);
        const rows = this.oracle.rows(table, { tenant });
        writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
        const names = columnsOf(table);
        const shape = names.map((name) => `"${name}": 'VARCHAR'`).join(", ");
        await connection.run(
          `CREATE OR REPLACE TEMP TABLE "${table.split(".")[1]}" AS SELECT ${names.map(typed).join(", ")}
           FROM read_json('${path}', format = 'newline_delimited', columns = {${shape}})`,
        );
      }
      const answer = await rowsOf(connection, sql);
      return JSON.parse(
        JSON.stringify(answer, (_, value: unknown) => (typeof value === "bigint" ? String(value) : value)),
      ) as unknown[][];
    });
  }
}

function typed(name: string): string {
  if (/_at$/.test(name)) return `make_timestamptz("${name}"::BIGINT) AS "${name}"`;
  if (/_count$|^lines_/.test(name)) return `"${name}"::BIGINT AS "${name}"`;
  return name === "story_points" ? `"${name}"::DOUBLE AS "${name}"` : `"${name}"`;
}

const box = new GitSandbox();
let duck: Duck;

beforeAll(async () => {
  duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
  for (let i = 0; i < 12; i++) {
    box.write(`src/file ${i % 5}.ts`, `${"x\n".repeat(i + 1)}`);
    box.write("it's.md", `${i}\n`);
    if (i === 11) rmSync(join(box.folder, "src/file 1.ts"));
    box.commit(`change ${i}`);
  }
});
afterAll(() => {
  box.remove();
  duck.close();
});

async function demo(
  options: Partial<DemoOptions>,
  prepare: (stack: OracleStack) => void = () => undefined,
  heard: () => void = () => undefined,
) {
  const stack = new OracleStack(duck);
  prepare(stack);
  const text = { out: "", err: "" };
  const code = await runDemo(
    {
      repo: box.folder,
      exit: true,
      signal: new AbortController().signal,
      startStack: ({ data }) => stack.start(data),
      ...options,
    },
    {
      out: {
        write: (part) => {
          text.out += part;
          heard();
        },
      },
      err: { write: (part) => (text.err += part) },
    },
  );
  return { code, stack, ...text };
}

describe("the demo", () => {
  it("publishes a repository's history, answers, and finds what git lists", async () => {
    const { code, out, stack } = await demo({});
    expect(out).toContain("Churn by directory");
    expect(out).toMatch(/it's\.md +12 +12/);
    expect(out).toMatch(/src\/file 1\.ts .*change 11 +0/);
    expect(out).toContain("expected 5, found 5");
    expect(out).toContain("They are the same.");
    expect(code).toBe(0);
    expect(stack.closed).toBe(true);
    expect(existsSync(stack.data)).toBe(false);
  });

  it("ends with 1, and names the file, when an accepted event is missing", async () => {
    // Each commit is three events; "src/file 2.ts" is the last of commits 2 and 7.
    const { code, out } = await demo({ patienceMs: 50 }, (stack) => {
      stack.lost = new Set([3 * 2 + 2, 3 * 7 + 2]);
    });
    expect(code).toBe(1);
    expect(out).toContain("They differ.");
    expect(out).toContain("missing: src/file 2.ts");
  });

  it("answers with one JSON object", async () => {
    const { out, err } = await demo({ json: true });
    expect(err).toBe("");
    expect(JSON.parse(out)).toMatchObject({
      domain: "scm",
      rejected: 0,
      comparison: { expected: 5, found: 5, differences: [] },
      lastChange: { queryableMs: expect.any(Number) },
      ok: true,
    });
  });

  it("generates data where there is no repository, and says so", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tributary-norepo-"));
    const { code, err, out } = await demo({ repo: folder, events: 600 });
    rmSync(folder, { recursive: true });
    expect(err).toContain("showing generated data instead");
    expect(out).toContain("what the generator made");
    expect(code).toBe(0);
  });

  it("goes on until it is told to stop, with a URL and tokens to try", async () => {
    const stop = new AbortController();
    const options = { exit: false, json: true, signal: stop.signal, domain: "tracker", events: 300 } as const;
    const { code, out, stack } = await demo(options, undefined, () => stop.abort());
    expect(JSON.parse(out)).toMatchObject({ url: stack.url, tokens: { analyst: "token-analyst" }, ok: true });
    expect(code).toBe(0);
    expect(stack.closed).toBe(true);
  });

  it("refuses a data folder that holds something", async () => {
    await expect(demo({ data: box.folder })).rejects.toMatchObject({ code: "TRB-CLI-USAGE" });
  });
});
