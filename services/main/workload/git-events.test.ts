import { mkdtempSync, rmSync, symlinkSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { GitSandbox } from "../../../test/support/git-sandbox.js";
import { Oracle } from "../../../test/support/oracle.js";
import { packageRoot } from "../../base/paths.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { fileId, type GitCommit, GitHistory } from "./git-events.js";
import { type GitRepository, listTree, openRepository, tenantOf } from "./git-repository.js";

const registry = ProtoRegistry.load([join(packageRoot, "proto")]);

/** Git knows this object without being told. */
const EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";

async function read(repository: GitRepository): Promise<{ history: GitHistory; commits: GitCommit[] }> {
  const history = new GitHistory(repository, { tenant: "demo", registry });
  const commits: GitCommit[] = [];
  for await (const commit of history.commits()) commits.push(commit);
  return { history, commits };
}

function applied(commits: readonly GitCommit[]): Oracle {
  const oracle = new Oracle();
  for (const { events } of commits) for (const event of events) oracle.apply(event);
  return oracle;
}

describe("a history with everything in it", () => {
  const box = new GitSandbox();
  const library = new GitSandbox();
  let repository: GitRepository;
  let history: GitHistory;
  let commits: GitCommit[];
  let oracle: Oracle;

  beforeAll(async () => {
    library.write("lib.c", "int x;\n");
    library.commit("library");

    box.write("README.md", "one\ntwo\n");
    box.write("src/deep/a b.ts", "x\n");
    box.write(".gitignore", "");
    box.write("bin/data.bin", Buffer.from([0, 1, 2, 0, 255]));
    box.commit("first");
    box.write("src/ünï/日本 🙂.txt", "u\n");
    box.write("src/new\nline\ttab.txt", "n\n");
    box.write('quo"te\\back.txt', "q\n");
    box.write(":100644 100644 a b M", "looks like git's own output\n");
    box.write("1\t2\tpath", "so does this\n");
    box.write(Buffer.from("latin-\xe9.txt", "latin1"), "not UTF-8\n");
    box.commit("unusual names\n\nwith a body\n:100644 and such");
    box.git("mv", "README.md", "GUIDE.md");
    box.write("bin/data.bin", Buffer.from([0, 9]));
    box.commit("rename, binary change");
    box.git("rm", "-q", "src/deep/a b.ts");
    box.commit("delete");
    box.write("src/deep/a b.ts", "again\nand again\n");
    box.commit("create again");
    box.commit(""); // neither message nor change
    box.git("checkout", "-q", "-b", "side");
    box.write("side.txt", "1\n2\n3\n");
    box.commit("side 1");
    box.git("rm", "-q", "GUIDE.md");
    box.commit("side 2");
    box.git("checkout", "-q", "main");
    box.write("main.txt", "m\n");
    box.commit("main goes on");
    box.git("merge", "-q", "--no-ff", "-m", "merge side", "side");
    box.write("tool.sh", "#!/bin/sh\n", 0o644);
    box.commit("tool");
    box.write("tool.sh", "#!/bin/sh\n", 0o755);
    box.commit("mode alone");
    unlinkSync(join(box.folder, "main.txt"));
    symlinkSync("tool.sh", join(box.folder, "main.txt"));
    box.commit("file becomes link");
    box.git("rm", "-q", "side.txt");
    box.write("side.txt/now a folder.md", "f\n");
    box.commit("file becomes folder");
    box.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", library.folder, "vendor/lib");
    box.git("config", "-f", ".gitmodules", "submodule.vendor/lib.ignore", "all");
    box.commit("submodule");
    library.write("lib.c", "int y;\n");
    library.commit("library moves");
    box.git("-C", "vendor/lib", "pull", "-q");
    box.git("add", "-f", "vendor/lib");
    box.commit("submodule moves");
    box.git("config", "diff.renames", "copies");
    box.git("config", "log.showSignature", "true");
    box.git("config", "diff.noprefix", "true");

    repository = (await openRepository(box.folder))!;
    ({ history, commits } = await read(repository));
    oracle = applied(commits);
  });

  afterAll(() => {
    box.remove();
    library.remove();
  });

  it("leaves the files alive that git lists, submodule and unusual names included", async () => {
    const listed = box.git("ls-tree", "-r", "--name-only", "-z", "HEAD");
    const paths = listed
      .toString("latin1")
      .split("\0")
      .slice(0, -1)
      .map((path) => {
        const bytes = Buffer.from(path, "latin1");
        return path === "latin-\xe9.txt" ? path : bytes.toString("utf8");
      });
    const live = oracle.rows("scm.files").map((row) => row.path);
    expect([...live].sort()).toEqual(paths.sort());
    expect([...history.live.keys()].sort()).toEqual(paths);
    expect((await listTree(repository)).sort()).toEqual(paths);
    expect(paths).toContain("src/new\nline\ttab.txt");
    expect(paths).toContain("vendor/lib");
  });

  it("knows what was deleted and did not come back", () => {
    expect([...history.deleted.keys()]).toEqual(["README.md", "GUIDE.md", "side.txt"]);
    expect(history.deleted.get("GUIDE.md")?.subject).toBe("merge side");
  });

  it("has one commit row per first-parent commit, with git's own figures", () => {
    const shas = box.git("rev-list", "--first-parent", "HEAD").toString().trim().split("\n");
    const rows = oracle.rows("scm.commits");
    expect(rows.map((row) => row.sha).sort()).toEqual(shas.sort());
    expect(commits.map(({ ordinal }) => ordinal)).toEqual(commits.map((_, i) => i + 1));
    expect(repository.commitCount).toBe(commits.length);
    for (const row of rows) {
      const sha = String(row.sha);
      const before = (row.parents as readonly string[])[0] ?? EMPTY_TREE;
      const stat = box
        .git("diff-tree", "-r", "--numstat", "--no-renames", "--ignore-submodules=none", before, sha)
        .toString()
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => line.split("\t").map((part) => (part === "-" ? 0 : Number(part))));
      expect([row.files_changed, row.insertions, row.deletions]).toEqual([
        String(stat.length),
        String(stat.reduce((sum, line) => sum + line[0]!, 0)),
        String(stat.reduce((sum, line) => sum + line[1]!, 0)),
      ]);
    }
  });

  it("takes a merge as its change against the first parent", () => {
    const merge = oracle.rows("scm.commits").find((row) => row.subject === "merge side")!;
    expect(merge.parents).toHaveLength(2);
    expect(merge.files_changed).toBe("2");
    expect(merge.insertions).toBe("3");
  });

  it("starts a file's counts anew when it is created again, and counts no lines of binary files", () => {
    const file = (path: string) => oracle.rows("scm.files").find((row) => row.path === path)!;
    expect(file("src/deep/a b.ts")).toMatchObject({
      directory: "src/deep",
      extension: "ts",
      change_count: "1",
      lines_added: "2",
      lines_deleted: "0",
    });
    expect(file("bin/data.bin")).toMatchObject({ change_count: "2", lines_added: "0", lines_deleted: "0" });
    expect(file(".gitignore")).toMatchObject({ directory: "", extension: "" });
    expect(file("tool.sh")).toMatchObject({ change_count: "2", lines_added: "1" });
    expect(file("README.md")).toBeUndefined();
  });

  it("hides authors behind a hash", () => {
    expect(oracle.rows("scm.commits").every((row) => /^author-[0-9a-f]{8}$/.test(String(row.author)))).toBe(
      true,
    );
  });

  it("reads a shallow clone: its oldest commit creates every file", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tributary-shallow-"));
    try {
      box.git("clone", "-q", "--depth", "3", `file://${box.folder}`, folder);
      const shallow = (await openRepository(folder))!;
      const { history: cut, commits: few } = await read(shallow);
      expect(few).toHaveLength(3);
      expect([...cut.live.keys()].sort()).toEqual([...history.live.keys()].sort());
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it("is the same from a folder inside the repository", async () => {
    const inside = (await openRepository(join(box.folder, "src", "deep")))!;
    expect(inside.name).toBe(repository.name);
    const { commits: same } = await read(inside);
    expect(same.flatMap(({ events }) => events)).toEqual(commits.flatMap(({ events }) => events));
    expect((await listTree(inside)).sort()).toEqual([...history.live.keys()].sort());
  });
});

describe("what is hardly a repository", () => {
  it("is none: a plain folder, a missing folder", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tributary-plain-"));
    try {
      expect(await openRepository(folder)).toBeUndefined();
      expect(await openRepository(join(folder, "missing"))).toBeUndefined();
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it("yields nothing while there is no commit", async () => {
    const box = new GitSandbox();
    try {
      const repository = (await openRepository(box.folder))!;
      expect(repository.head).toBeUndefined();
      expect((await read(repository)).commits).toEqual([]);
      expect(await listTree(repository)).toEqual([]);
    } finally {
      box.remove();
    }
  });

  it("fails by code when git fails in the middle", async () => {
    const box = new GitSandbox();
    try {
      box.commit("one");
      const repository = (await openRepository(box.folder))!;
      const broken = { ...repository, head: "0".repeat(40) };
      await expect(read(broken)).rejects.toMatchObject({ code: "TRB-CLI-SOURCE" });
    } finally {
      box.remove();
    }
  });
});

it("makes tenant ids of names", () => {
  expect(tenantOf("fastify")).toBe("fastify");
  expect(tenantOf("My Répo (2)")).toBe("My-Repo-2-");
  expect(tenantOf("..")).toBe("repository");
  expect(tenantOf("日本")).toBe("repository");
  expect(tenantOf("x".repeat(300))).toHaveLength(128);
});

it("names paths too long for an entity id by their hash", () => {
  expect(fileId("ü".repeat(512))).toBe("ü".repeat(512));
  expect(fileId("ü".repeat(513))).toMatch(/^sha256:[0-9a-f]{64}$/);
});
