import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { removeFolder, temporaryFolder } from "../support/stack.js";

const CLI = join(packageRoot, "dist", "services", "main", "cli.js");
const readme = readFileSync(join(packageRoot, "README.md"), "utf8");

interface Block {
  readonly language: string;
  readonly text: string;
  /** File names in the sentence before it, in order. */
  readonly names: readonly string[];
}

/** The blocks of a section, with the names of files that the prose before them mentions. */
function blocksOf(title: string): Block[] {
  const section = new RegExp(`^## ${title}\\n([\\s\\S]*?)(?=^## )`, "m").exec(readme)?.[1];
  if (section === undefined) throw new Error(`the README has no section "${title}"`);
  let prose = 0;
  return [...section.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)].map((match) => {
    const before = section.slice(prose, match.index);
    prose = match.index + match[0].length;
    const names = [...before.matchAll(/`([\w./]+\.(?:proto|yml|yaml|sql|ndjson))`/g)].map(
      ([, name]) => name!,
    );
    return { language: match[1]!, text: match[2]!, names };
  });
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

/** Runs a shell script in `folder`; what it leaves running is ended, and waited for. Resolves to its standard output. */
async function shell(folder: string, script: string, env: NodeJS.ProcessEnv = {}): Promise<string> {
  const bin = join(folder, "bin");
  mkdirSync(bin, { recursive: true });
  writeFileSync(join(bin, "tributary"), `#!/bin/sh\nexec "${process.execPath}" "${CLI}" "$@"\n`, {
    mode: 0o755,
  });
  const prelude = `set -eu\nPATH="${bin}:$PATH"\ntrap 'jobs -p | xargs -r kill; wait' EXIT`;
  const { stdout } = await promisify(execFile)("bash", ["-c", `${prelude}\n${script}`], {
    cwd: folder,
    env: { ...process.env, TRIBUTARY_LOG__LEVEL: "warn", ...env },
    timeout: 240_000,
  });
  return stdout;
}

describe('"A domain of your own", word by word', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await temporaryFolder();
  });
  afterAll(() => removeFolder(folder));

  it("gives the answers that are printed there", async () => {
    const port = await freePort();
    const blocks = blocksOf("A domain of your own");
    const pending: string[] = [];
    const script: string[] = [];
    const expected: string[] = [];
    for (const { language, text, names } of blocks) {
      pending.push(...names);
      if (language === "sh") script.push(text.replaceAll("8080", String(port)), "echo ===");
      else if (language === "text") expected.push(text);
      else {
        const name = pending.shift();
        if (name === undefined) throw new Error(`no file is named for:\n${text}`);
        mkdirSync(dirname(join(folder, name)), { recursive: true });
        writeFileSync(join(folder, name), text);
      }
    }
    expect(pending).toEqual([]);
    const out = await shell(folder, script.join("\n"), { TRIBUTARY_HTTP__PORT: String(port) });
    const answers = out.split("===\n").slice(0, -1);
    expect(answers).toHaveLength(expected.length);
    for (const [at, answer] of answers.entries()) {
      // Commands before it say that they listen or are done; the answer printed there is the last one's.
      expect(answer.replaceAll("\r\n", "\n").endsWith(expected[at]!), answer).toBe(true);
    }
    const checks = await shell(folder, "tributary models test; tributary table verify");
    expect(checks).toMatch(/acme\.orders +state +not_null +ok/);
  });
});
