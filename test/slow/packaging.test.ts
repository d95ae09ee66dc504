import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, chown, cp, mkdir, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { DockerfileParser } from "dockerfile-ast";
import { validate } from "dockerfile-utils";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { removeFolder, temporaryFolder } from "../support/stack.js";

const FILE = join(packageRoot, "deploy", "Containerfile");

/** One step of the file, its words as the build would see them. */
interface Step {
  readonly keyword: string;
  readonly words: readonly string[];
  /** Of a COPY, the stage it copies from. */
  readonly from: string | undefined;
  /** Everything after the keyword, for RUN in its shell form. */
  readonly line: string;
}

interface Stage {
  readonly image: string;
  readonly name: string | undefined;
  readonly steps: readonly Step[];
}

async function stages(): Promise<Stage[]> {
  const found: { image: string; name: string | undefined; steps: Step[] }[] = [];
  for (const instruction of DockerfileParser.parse(await readFile(FILE, "utf8")).getInstructions()) {
    const keyword = instruction.getKeyword();
    const line = instruction.getArgumentsContent() ?? "";
    const words = instruction.getArguments().map((arg) => arg.getValue());
    if (keyword === "FROM") found.push({ image: words[0]!, name: words[2], steps: [] });
    else {
      const from = /--from=(\S+)/.exec(instruction.getTextContent())?.[1];
      found
        .at(-1)
        ?.steps.push({ keyword, words: words.filter((word) => !word.startsWith("--")), from, line });
    }
  }
  return found;
}

const json = (step: Step): string[] => JSON.parse(step.line.replace(/^[^[]*/, "")) as string[];

/**
 * Builds the file's stages in folders instead of images: COPY copies, RUN runs with the stage's folder in place of the
 * root. What it cannot show is that the base image exists and is what it says.
 */
async function build(all: readonly Stage[], under: string): Promise<string> {
  const roots = new Map<string, string>();
  let root = under;
  for (const [at, stage] of all.entries()) {
    root = join(under, String(at));
    if (stage.name !== undefined) roots.set(stage.name, root);
    let workdir = root;
    for (const step of stage.steps) {
      if (step.keyword === "WORKDIR") {
        workdir = join(root, step.words[0]!);
        await mkdir(workdir, { recursive: true });
      } else if (step.keyword === "COPY") {
        const source = step.from === undefined ? packageRoot : roots.get(step.from)!;
        const target = step.words.at(-1)!;
        for (const name of step.words.slice(0, -1)) {
          const folder = target.endsWith("/") || step.words.length > 2;
          await cp(join(source, name), join(workdir, target, folder ? name : ""), { recursive: true });
        }
      } else if (step.keyword === "RUN") await run(step.line, workdir, root);
    }
  }
  return root;
}

async function run(line: string, cwd: string, root: string): Promise<void> {
  const owned = identity === undefined ? line.replace(/chown \S+/, "test -d") : line;
  const command = owned.replaceAll(" /data", ` ${root}/data`);
  const child = spawn("sh", ["-ec", command], { cwd, stdio: ["ignore", "ignore", "pipe"] });
  let err = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    err += text;
  });
  const [code] = (await once(child, "close")) as [number];
  if (code !== 0) throw new Error(`RUN ${line}\n${err}`);
}

let folder: string;
let image: string;
let all: readonly Stage[];
/** The user the image names; root can become it, anybody else stays who they are. */
const identity = process.getuid?.() === 0 ? { uid: 1000, gid: 1000 } : undefined;

beforeAll(async () => {
  folder = await temporaryFolder();
  await chmod(folder, 0o755);
  all = await stages();
  image = await build(all, folder);
}, 600_000);
afterAll(() => removeFolder(folder));

const final = () => all.at(-1)!.steps;
const step = (keyword: string) => final().find((each) => each.keyword === keyword)!;

function environment(): Record<string, string> {
  const pairs = final()
    .filter(({ keyword }) => keyword === "ENV")
    .flatMap(({ words }) => words.map((word) => word.split("=") as [string, string]));
  return Object.fromEntries(pairs.map(([name, value]) => [name, value.replace("/data", `${image}/data`)]));
}

const start = (words: readonly string[], env: Record<string, string>): ChildProcess => {
  const [program, ...args] = words.map((word) => word.replace("/app/", `${image}/app/`));
  expect(program).toBe("node");
  const options = { cwd: join(image, "app"), env: { PATH: process.env.PATH!, ...env }, ...identity };
  return spawn(process.execPath, args, { ...options, stdio: ["ignore", "pipe", "inherit"] });
};

describe("deploy/Containerfile", () => {
  it("is well-formed by the rules of a linter", async () => {
    expect(validate(await readFile(FILE, "utf8")).map(({ message }) => message)).toEqual([]);
  });

  it("names an exact base image, a user who is not root, a volume, a signal and a health check", async () => {
    const text = await readFile(FILE, "utf8");
    expect(text).toMatch(/^ARG NODE_IMAGE=docker\.io\/library\/node:\d+\.\d+\.\d+-[a-z]+-slim$/m);
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the file's own variable
    expect(all.every(({ image }) => image === "${NODE_IMAGE}")).toBe(true);
    expect(step("USER").words[0]).toMatch(/^[1-9]\d*:[1-9]\d*$/);
    expect(step("VOLUME").words).toEqual([environmentOfFile("TRIBUTARY_DATA")]);
    expect(step("STOPSIGNAL").words).toEqual(["SIGTERM"]);
    expect(step("HEALTHCHECK").line).toContain("/healthz");
  });

  it("holds what runs, and neither tests nor what builds it", async () => {
    const app = join(image, "app");
    expect((await readdir(app)).toSorted()).toEqual(
      ["LICENSE", "dist", "node_modules", "package.json", "proto", "transforms"].toSorted(),
    );
    expect(await readdir(join(app, "node_modules"))).not.toContain("vitest");
    const names = await readdir(join(app, "dist"), { recursive: true });
    expect(names.filter((name) => name.includes(".test."))).toEqual([]);
  });

  it("starts as that user, is healthy by its own check, takes an event, and ends on its signal", async () => {
    const env = { ...environment(), TRIBUTARY_HTTP__PORT: "0", TRIBUTARY_LOG__LEVEL: "warn" };
    if (identity !== undefined) await chown(join(image, "data"), identity.uid, identity.gid);
    const entry = json(step("ENTRYPOINT"));
    const server = start([...entry, ...json(step("CMD")), "--json"], env);
    try {
      const [line] = (await once(createInterface({ input: server.stdout! }), "line")) as [string];
      const { port } = new URL((JSON.parse(line) as { url: string }).url);
      const check = start(json(step("HEALTHCHECK")), { ...env, TRIBUTARY_HTTP__PORT: port });
      expect(await once(check, "exit")).toEqual([0, null]);
      const asked = start([...entry, "token", "--role", "producer", "--tenant", "acme"], env);
      const [token] = (await once(createInterface({ input: asked.stdout! }), "line")) as [string];
      const answer = await fetch(`http://127.0.0.1:${port}/v1/events`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
        body: JSON.stringify([
          {
            tenantId: "acme",
            entityType: "tracker.v1.Issue",
            entityId: "1",
            operation: "OPERATION_DELETED",
            version: "1",
          },
        ]),
      });
      expect(await answer.json()).toMatchObject({ accepted: 1 });
      if (identity !== undefined) expect((await stat(join(image, "data/lake"))).uid).toBe(identity.uid);
    } finally {
      const ended = once(server, "exit");
      server.kill(step("STOPSIGNAL").words[0] as NodeJS.Signals);
      expect(await ended).toEqual([0, null]);
    }
    const gone = start(json(step("HEALTHCHECK")), { ...env, TRIBUTARY_HTTP__PORT: "9" });
    expect(await once(gone, "exit")).toEqual([1, null]);
  });
});

function environmentOfFile(name: string): string | undefined {
  return step("ENV")
    .words.map((word) => word.split("="))
    .find(([each]) => each === name)?.[1];
}
