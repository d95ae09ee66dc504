import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, relative, sep } from "node:path";
import { describe, expect, it } from "vitest";
import { PRODUCER_CODES } from "../clients/producer/src/errors.js";
import { CODES } from "../services/base/codes.js";
import { packageRoot } from "../services/base/paths.js";

/** The house: which floor a service stands on. A service imports from lower floors and from itself. */
const FLOORS: Readonly<Record<string, number>> = {
  base: 1,
  columns: 2,
  lease: 2,
  stream: 3,
  storage: 3,
  contracts: 3,
  table: 4,
  tenancy: 4,
  models: 4,
  status: 4,
  offload: 4,
  bus: 5,
  ingest: 5,
  follow: 5,
  operate: 5,
  query: 5,
  sources: 5,
  bulk: 6,
  main: 7,
};
/** The rooms of `bulk`, as they stand on each other; what lies in none of them is its entrance, above all. */
const BULK_FLOORS: Readonly<Record<string, number>> = {
  chunks: 1,
  jobs: 2,
  imports: 3,
  verify: 3,
  bootstrap: 4,
  replay: 4,
};
const MAX_LINES = 400;

const files = readdirSync(join(packageRoot, "services"), { recursive: true, encoding: "utf8" })
  .filter((name) => name.endsWith(".ts"))
  .map((name) => name.split(sep).join("/"));
const sources = files.filter((name) => !name.endsWith(".test.ts"));
const clientFiles = readdirSync(join(packageRoot, "clients"), { recursive: true, encoding: "utf8" })
  .map((name) => name.split(sep).join("/"))
  .filter((name) => /^[^/]+\/(src|test)\/.*\.ts$/.test(name))
  .map((name) => `../clients/${name}`);
const clientSources = clientFiles.filter((name) => name.includes("/src/") && !name.endsWith(".test.ts"));
const read = (name: string) => readFileSync(join(packageRoot, "services", name), "utf8");
const serviceOf = (name: string) => name.split("/")[0]!;

/** Libraries of their own, which what they are installed into must not have to bring. Only `main` stands on them. */
const CLIENT = /^\.\.\/clients\//;

function importsOf(name: string): string[] {
  const specifiers = [...read(name).matchAll(/\bfrom "([^"]+)"|\bimport\("([^"]+)"\)/g)].map(
    (m) => m[1] ?? m[2]!,
  );
  return specifiers
    .filter((s) => s.startsWith("."))
    .map((s) =>
      normalize(join(dirname(name), s))
        .split(sep)
        .join("/"),
    );
}

describe("the house's rules", () => {
  it("knows every service's floor, and every floor has its service", () => {
    expect([...new Set(files.map(serviceOf))].sort()).toEqual(Object.keys(FLOORS).sort());
  });

  it("a service imports from lower floors only, never sideways or up", () => {
    const wrong = sources.flatMap((name) =>
      importsOf(name)
        .filter((target) => serviceOf(target) !== serviceOf(name))
        .filter((target) => !(CLIENT.test(target) && serviceOf(name) === "main"))
        .filter((target) => !(FLOORS[serviceOf(target)]! < FLOORS[serviceOf(name)]!))
        .map((target) => `${name} imports ${target}`),
    );
    expect(wrong).toEqual([]);
  });

  it("the rooms of bulk keep to their order too", () => {
    const roomOf = (name: string) => (name.split("/").length > 2 ? name.split("/")[1]! : "entrance");
    const floorOf = (name: string) => BULK_FLOORS[roomOf(name)] ?? Number.POSITIVE_INFINITY;
    const own = files.filter((name) => serviceOf(name) === "bulk");
    expect([...new Set(own.map(roomOf))].sort()).toEqual([...Object.keys(BULK_FLOORS), "entrance"].sort());
    const wrong = own
      .filter((name) => !name.endsWith(".test.ts"))
      .flatMap((name) =>
        importsOf(name)
          .filter((target) => serviceOf(target) === "bulk" && roomOf(target) !== roomOf(name))
          .filter((target) => !(floorOf(target) < floorOf(name)))
          .map((target) => `${name} imports ${target}`),
      );
    expect(wrong).toEqual([]);
  });

  it("a library for others imports nothing of the services, and no package it does not name", () => {
    const wrong = clientSources.flatMap((name) => {
      const { dependencies, peerDependencies } = JSON.parse(
        read(name.replace(/src\/.*/, "package.json")),
      ) as {
        dependencies?: Record<string, string>;
        peerDependencies?: Record<string, string>;
      };
      const known = Object.keys({ ...dependencies, ...peerDependencies });
      return [...read(name).matchAll(/\bfrom "([^"]+)"|\bimport\("([^"]+)"\)/g)]
        .map((m) => m[1] ?? m[2]!)
        .filter((s) => !s.startsWith("./") && !s.startsWith("node:"))
        .filter((s) => !known.some((one) => s === one || s.startsWith(`${one}/`)))
        .map((s) => `${name} imports ${s}`);
    });
    expect(clientSources.length).toBeGreaterThan(0);
    expect(wrong).toEqual([]);
  });

  it(`no source is longer than ${MAX_LINES} lines`, () => {
    const long = [...sources, ...clientSources].filter((name) => read(name).split("\n").length > MAX_LINES);
    expect(long).toEqual([]);
  });

  it("types stay strict and tests run", () => {
    const banned: readonly [RegExp, string][] = [
      [/\bas any\b|: any\b|<any>/, "any"],
      [/@ts-(ignore|expect-error|nocheck)/, "a silenced type error"],
      [/\b(it|describe|test)\.(skip|only|todo)\b/, "a skipped test"],
      [/\bexport \* from\b/, "a barrel"],
      [/\b(TODO|FIXME|XXX)\b/, "unfinished work"],
      [
        /^\s+(readonly |async |static |get |set |\*)*#[a-z]|\bthis\.#[a-z]/m,
        "a #private member; the house writes `private`",
      ],
      [/\.\.\.\(?\[\s*("[^"\n]*",?\s*)+\]( as [\w[\]]+)?\)?[,\s]/, "a spread that only steers the formatter"],
    ];
    const tests = readdirSync(join(packageRoot, "test"), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".ts") && name !== "floors.test.ts")
      .map((name) => relative(join(packageRoot, "services"), join(packageRoot, "test", name)));
    const found = [...files, ...clientFiles, ...tests].flatMap((name) =>
      banned.filter(([pattern]) => pattern.test(read(name))).map(([, what]) => `${name}: ${what}`),
    );
    expect(found).toEqual([]);
  });

  it("a library stays behind the folder that knows it", () => {
    const homes: readonly [string, RegExp][] = [
      ["jose", /^tenancy\//],
      ["fastify", /^(base|bulk|bus|query|tenancy)\//],
      ["roaring-wasm", /^table\//],
      ["@huggingface/jinja", /^models\//],
      ["@platformatic/kafka", /^stream\/kafka\//],
      ["@aws-sdk/client-kinesis", /^stream\/kinesis\//],
      ["@aws-sdk/client-dynamodb", /^lease\//],
    ];
    const wrong = homes.flatMap(([module, home]) =>
      sources
        .filter((name) => read(name).includes(`from "${module}"`) && !home.test(name))
        .map((n) => `${n}: ${module}`),
    );
    expect(wrong).toEqual([]);
  });
});

describe("docs/errors.md", () => {
  it("lists every code with its status, whether a retry helps, and its remedy", () => {
    const text = readFileSync(join(packageRoot, "docs", "errors.md"), "utf8");
    const rows = Object.entries(CODES).map(
      ([code, { status, retry, summary, remedy }]) =>
        `| \`${code}\` | ${status} | ${retry ? "yes" : "no"} | ${summary} | ${remedy} |`,
    );
    const listed = text.split("\n").filter((line) => line.startsWith("| `TRB-"));
    expect(listed).toEqual(rows);
  });
});

describe("clients/producer/README.md", () => {
  it("lists every code of the library with its meaning", () => {
    const text = readFileSync(join(packageRoot, "clients", "producer", "README.md"), "utf8");
    const rows = Object.entries(PRODUCER_CODES).map(([code, meaning]) => `| \`${code}\` | ${meaning} |`);
    expect(text.split("\n").filter((line) => line.startsWith("| `TRB-"))).toEqual(rows);
  });
});

describe("docs/invariants.md", () => {
  it("names, for each invariant, tests that exist", () => {
    const text = readFileSync(join(packageRoot, "docs", "invariants.md"), "utf8");
    const ids = [...text.matchAll(/^\| (I\d+) \|/gm)].map((m) => m[1]);
    expect(ids).toEqual(Array.from({ length: 13 }, (_, i) => `I${i + 1}`));
    const named = [...text.matchAll(/`((?:services|test)\/[^`]+\.test\.ts)`/g)].map((m) => m[1]!);
    expect(named.length).toBeGreaterThan(0);
    for (const name of named) expect(() => readFileSync(join(packageRoot, name))).not.toThrow();
  });
});

describe("docs/producing.md", () => {
  it("shows the programs of examples/clients as they are", () => {
    const text = readFileSync(join(packageRoot, "docs", "producing.md"), "utf8");
    const shown = [...text.matchAll(/^`(examples\/[^`]+)`\n\n```\w+\n(.*?)^```$/gms)];
    expect(shown.map(([, name]) => name!.split("/")[2])).toEqual(["curl", "python", "java", "go"]);
    for (const [, name, program] of shown) {
      expect(program, name).toBe(readFileSync(join(packageRoot, name!), "utf8"));
    }
  });
});

describe("the documents", () => {
  const written = ["README.md", "CONTRIBUTING.md", "transforms/README.md", "clients/producer/README.md"];
  const pages = written.concat(
    readdirSync(join(packageRoot, "docs"), { recursive: true, encoding: "utf8" })
      // A decision tells of its day.
      .filter((name) => name.endsWith(".md") && !name.startsWith("decisions"))
      .map((name) => join("docs", name)),
  );
  const folders = "build|clients|deploy|examples|docs|proto|services|test|transforms";

  it.each(pages)("%s names files that exist", (page) => {
    const text = readFileSync(join(packageRoot, page), "utf8");
    const named = [...text.matchAll(new RegExp(`\`((?:${folders})/[\\w./-]*)\``, "g"))].map(
      ([, name]) => name!,
    );
    const linked = [...text.matchAll(/\]\((?!https?:|#)([^)#]+)\)/g)].map(([, name]) =>
      join(dirname(page), name!),
    );
    // The README's own domain is the reader's to make.
    const gone = [...named, ...linked].filter(
      (name) => !name.includes("/acme/") && !existsSync(join(packageRoot, name)),
    );
    expect(gone).toEqual([]);
  });
});
