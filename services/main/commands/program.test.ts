import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { CODES } from "../../base/codes.js";
import { loadConfig } from "../../base/config.js";
import { writeWorkerStatus } from "../../status/ingest-status.js";
import { FileStore } from "../../storage/file-store.js";
import { withStore } from "../compose/runtime.js";
import { runProgram } from "./program.js";

/** What a command wrote and the code it ended with. */
let out = "";
let err = "";
const SECRET = "eyJhbGciOi.secret.token";
let folder: string;

beforeEach(() => {
  out = "";
  err = "";
  folder = mkdtempSync(join(tmpdir(), "tributary-cli-"));
  const toOut = (text: unknown) => {
    out += String(text);
    return true;
  };
  const toErr = (text: unknown) => {
    err += String(text);
    return true;
  };
  vi.spyOn(console, "log").mockImplementation((text) => void toOut(`${text}\n`));
  vi.spyOn(console, "error").mockImplementation((text) => void toErr(`${text}\n`));
  vi.spyOn(process.stdout, "write").mockImplementation(toOut);
  vi.spyOn(process.stderr, "write").mockImplementation(toErr);
  vi.stubEnv("TRIBUTARY_TOKEN", SECRET);
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  // Vitest reads it when its worker ends.
  process.exitCode = undefined;
  rmSync(folder, { recursive: true, force: true });
});

const data = () => join(folder, "data");

describe("help", () => {
  it.each(["sql", "publish"])("of %s names the variable and never shows what it holds", async (command) => {
    expect(await runProgram([command, "--help"])).toBe(0);
    expect(out).toContain("env: TRIBUTARY_TOKEN");
    expect(out + err).not.toContain(SECRET);
  });

  it("tells the exit codes", async () => {
    expect(await runProgram(["--help"])).toBe(0);
    expect(out).toContain("Exit codes: 0 done, 1 failed, 2 wrong command line, 130 stopped");
  });
});

describe("where each domain has a topic of its own, and no broker answers", () => {
  beforeEach(() => {
    vi.stubEnv("TRIBUTARY_STREAM__KIND", "kafka");
    vi.stubEnv("TRIBUTARY_STREAM__KAFKA__BROKERS", "127.0.0.1:1");
    vi.stubEnv("TRIBUTARY_LOG__LEVEL", "silent");
    mkdirSync(join(data(), "lake"), { recursive: true });
  });

  it.each([
    [["deadletter", "redrive"], "applied 0"],
    [["table", "repair", "scm.files", "--dry-run"], "scm.files: nothing is wrong"],
    [["table", "repair", "dead_letters"], "dead_letters: nothing is wrong"],
  ])("%s needs none", async (command, answer) => {
    expect(await runProgram([...command, "--data", data()])).toBe(0);
    expect(out).toContain(answer);
  });
});

describe("a wrong command line ends with 2 and names the field", () => {
  const client = ["--url", "http://127.0.0.1:1"];
  it.each([
    [["up", "--port", "70000"], "--port <n>"],
    [["up", "--port", ""], "--port <n>"],
    [["up", "--port", "0x50"], "--port <n>"],
    [["up", "--prot", "1"], "--prot"],
    [["up", "extra"], "too many arguments"],
    [["publish", "f", ...client, "--batch", "0"], "--batch <n>"],
    [["publish", "f", ...client, "--concurrency", "1e3"], "--concurrency <n>"],
    [["demo", "--events", "0"], "--events <n>"],
    [["sql", "select 1", ...client, "--csv", "--json"], "'--csv'"],
    [["sql", "select 1", "--url", "tributary.example"], "--url"],
    [["sql", "select 1"], "--url <url>"],
    [["token", "--role", "analyst", "--tenant", "a", "--expires-in", "0h"], "--expires-in <time>"],
    [["token", "--role", "analyst", "--tenant", "a", "--expires-in", "3651d"], "--expires-in <time>"],
    [["token", "--role", "root", "--tenant", "a"], "--role <role>"],
    [["nosuch"], "nosuch"],
    [["table"], "table"],
  ])("%j", async (args, field) => {
    expect(await runProgram(args)).toBe(2);
    expect(err).toContain(field);
    expect(out + err).not.toContain(SECRET);
  });

  it.each([
    [["up", "--port", "x", "--json"]],
    [["table", "--json"]],
    [["nosuch", "--json"]],
    [["token", "--role", "analyst", "--json"]],
    [["sql", "select 1", ...client, "--csv", "--json"]],
    [["token", "--role", "analyst", "--tenant", "*", "b", "--json"]],
  ])("%j: with --json as one error body", async (args) => {
    expect(await runProgram(args)).toBe(2);
    expect(out).toBe("");
    expect(JSON.parse(err)).toMatchObject({ error: { code: "TRB-CLI-USAGE", message: /./ } });
  });
});

describe("token", () => {
  const token = (...args: string[]) => runProgram(["token", "--role", "analyst", "--data", data(), ...args]);

  it("makes neither folder nor key of a mistyped name, unless it is told to", async () => {
    expect(await token("--tenant", "a")).toBe(2);
    expect(err).toMatch(/TRB-CLI-USAGE: --data: expected a data folder that has been started once/);
    expect(existsSync(data())).toBe(false);
    // A folder of something else is none either.
    mkdirSync(data());
    expect(await token("--tenant", "a")).toBe(2);
    expect(existsSync(join(data(), "keys"))).toBe(false);
    expect(await token("--tenant", "a", "--create")).toBe(0);
    expect(out).toMatch(/^[\w-]+\.[\w-]+\.[\w-]+\n$/);
    expect(await token("--tenant", "a")).toBe(0);
  });

  it("means all tenants by '*' alone", async () => {
    for (const names of [
      ["--tenant", "*", "--tenant", "b"],
      ["--tenant", "b", "*"],
    ]) {
      expect(await token("--create", ...names)).toBe(2);
      expect(err).toContain("--tenant: expected '*' alone, or tenants by name");
    }
    expect(existsSync(data())).toBe(false);
    expect(await token("--create", "--tenant", "*", "--json")).toBe(0);
    // The folder will hold every tenant's rows: it is its owner's.
    expect(statSync(data()).mode & 0o777).toBe(0o700);
    const claims = JSON.parse(Buffer.from(JSON.parse(out).token.split(".")[1], "base64url").toString());
    expect(claims.tenants).toBe("*");
  });
});

describe("sql", () => {
  let server: Server;
  let asked: { sql?: string; accept?: string | undefined };
  let answer: { status: number; body: string };
  let url: string;

  beforeAll(async () => {
    server = createServer(async (request, response) => {
      let body = "";
      for await (const part of request) body += part;
      asked = { ...(JSON.parse(body) as { sql: string }), accept: request.headers.accept };
      response.writeHead(answer.status, { "content-type": "application/json" }).end(answer.body);
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(() => new Promise((done) => server.close(done)));
  beforeEach(() => {
    const columns = [
      { name: "a", type: "VARCHAR" },
      { name: "b", type: "BIGINT" },
    ];
    const rows = [
      ["", "1"],
      [null, null],
    ];
    answer = {
      status: 200,
      body: JSON.stringify({ columns, rows, rowCount: 2, elapsedMs: 1, snapshot: "s" }),
    };
  });

  it("shows NULL unlike an empty text", async () => {
    expect(await runProgram(["sql", "select 1", "--url", url])).toBe(0);
    expect(out).toBe("a        b\n────  ────\n         1\nNULL  NULL\n(2 rows, 1 ms)\n");
  });

  it("reads the statement from standard input for -", async () => {
    vi.spyOn(process, "stdin", "get").mockReturnValue(
      Readable.from([Buffer.from("select\n'"), Buffer.from("ü'")]) as typeof process.stdin,
    );
    expect(await runProgram(["sql", "-", "--url", url, "--json"])).toBe(0);
    expect(asked.sql).toBe("select\n'ü'");
    expect(JSON.parse(out)).toMatchObject({ rowCount: 2 });
  });

  it("hands CSV through as the server wrote it", async () => {
    answer.body = 'a,b\r\n"",1\r\n,\r\n';
    expect(await runProgram(["sql", "select 1", "--url", url, "--csv"])).toBe(0);
    expect(asked.accept).toBe("text/csv");
    expect(out).toBe(answer.body);
  });

  it("points at the place of a failure; with --json it is the server's error body", async () => {
    const error = {
      code: "TRB-QUERY-COLUMN",
      message: "a column is not found or ambiguous",
      details: { position: { line: 2, column: 3 } },
    };
    answer = { status: 400, body: JSON.stringify({ error }) };
    expect(await runProgram(["sql", "select\n\t pth from files", "--url", url])).toBe(1);
    expect(err).toBe(
      [
        "TRB-QUERY-COLUMN: a column is not found or ambiguous",
        "  2 |      pth from files",
        "    |      ^",
        `  ${CODES["TRB-QUERY-COLUMN"].remedy}`,
        "",
      ].join("\n"),
    );
    err = "";
    expect(await runProgram(["sql", "select\n\t pth from files", "--url", url, "--json"])).toBe(1);
    expect(JSON.parse(err)).toEqual({ error });
  });
});

describe("the state of tables", () => {
  const since = "2026-01-02T03:04:05.000Z";

  /** A lake with one table whose log is damaged and a status that names another, which does not exist yet. */
  async function damagedLake(): Promise<void> {
    const log = join(data(), "lake/raw/scm.v1.File/_delta_log");
    mkdirSync(log, { recursive: true });
    writeFileSync(join(log, "00000000000000000000.json"), "{not json\n");
    const store = await FileStore.open({
      folder: join(data(), "lake"),
      staging: join(data(), "scratch/test"),
    });
    await writeWorkerStatus(store, "ingest", {
      writtenAt: since,
      tables: [
        {
          kind: "model",
          name: "scm.files",
          entityType: "scm.v1.File",
          state: "quarantined",
          since,
          code: "TRB-MODEL-FAILED",
          reason: "the model fails on every row",
          remedy: "mend the model",
          attempts: 3,
          parkedBytes: 0,
          held: false,
        },
      ],
    });
  }

  it("table ls names what cannot be read or go on, since when, why and what to do, and hides nothing for it", async () => {
    await damagedLake();
    expect(await runProgram(["table", "ls", "--data", data()])).toBe(0);
    expect(out).toMatch(/raw\/scm\.v1\.File +damaged/);
    expect(out).toMatch(/scm\.files +quarantined/);
    expect(out).toContain(
      [
        `scm.files: quarantined since ${since}`,
        "  TRB-MODEL-FAILED: the model fails on every row",
        "  tried 3 times, the next try is under way or due",
        "  → mend the model",
      ].join("\n"),
    );
    // Nobody has written for long: ingest would have, with or without a change.
    expect(out).toContain(`ingest does not run: these states are of ${since}`);
    out = "";
    expect(await runProgram(["table", "ls", "--data", data(), "--json"])).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      tables: [
        { table: "raw/scm.v1.File", state: "damaged", code: expect.stringMatching(/^TRB-/) },
        { table: "scm.files", state: "quarantined", since, attempts: 3 },
      ],
      ingest: { writtenAt: since, stale: true },
    });
  });

  it("table verify reports a table that cannot be opened beside the others", async () => {
    await damagedLake();
    expect(await runProgram(["table", "verify", "--data", data(), "--json"])).toBe(1);
    expect(JSON.parse(out)).toMatchObject({
      ok: false,
      problems: [expect.stringMatching(/^raw\/scm\.v1\.File: /)],
    });
  });

  it("models ls tells the state beside each model, with a lake and without", async () => {
    expect(await runProgram(["models", "ls", "--data", data(), "--json"])).toBe(0);
    expect(JSON.parse(out).models).toContainEqual(
      expect.objectContaining({ name: "scm.files", entityType: "scm.v1.File", state: "ok" }),
    );
    expect(existsSync(data())).toBe(false);
    await damagedLake();
    out = "";
    expect(await runProgram(["models", "ls", "--data", data()])).toBe(0);
    expect(out).toMatch(/scm\.files +scm\.v1\.File +quarantined/);
    expect(out).toContain("→ mend the model");
  });
});

describe("a command on a lake", () => {
  it.each([["SIGINT"], ["SIGTERM"]] as const)(
    "that is stopped by %s leaves no staging folder",
    async (signal) => {
      mkdirSync(join(data(), "lake"), { recursive: true });
      const kill = vi.spyOn(process, "kill").mockReturnValue(true);
      const staging = () => readdirSync(join(data(), "staging"));
      await withStore(loadConfig({ data: data() }, { env: {} }), async () => {
        expect(staging()).toEqual([`cli-${process.pid}`]);
        process.emit(signal, signal);
        expect(staging()).toEqual([]);
        expect(kill).toHaveBeenCalledExactlyOnceWith(process.pid, signal);
      });
      expect(process.listeners(signal)).toEqual([]);
    },
  );
});
