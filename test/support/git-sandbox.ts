import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** A throw-away repository, and git in it without the user's configuration. */
export class GitSandbox {
  readonly folder = mkdtempSync(join(tmpdir(), "tributary-git-"));
  private clock = 1_600_000_000;

  constructor() {
    this.git("init", "-q", "-b", "main");
  }

  git(...args: string[]): Buffer {
    const date = `${++this.clock} +0130`;
    return execFileSync("git", ["-C", this.folder, "-c", "protocol.file.allow=always", ...args], {
      env: {
        PATH: process.env.PATH,
        HOME: this.folder,
        GIT_CONFIG_NOSYSTEM: "1",
        GIT_AUTHOR_NAME: "A",
        GIT_AUTHOR_EMAIL: "a@example.com",
        GIT_AUTHOR_DATE: date,
        GIT_COMMITTER_NAME: "C",
        GIT_COMMITTER_EMAIL: "c@example.com",
        GIT_COMMITTER_DATE: date,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
  }

  write(path: string | Buffer, content: string | Uint8Array, mode = 0o644): void {
    const full = Buffer.concat([Buffer.from(`${this.folder}/`), Buffer.from(path)]);
    if (typeof path === "string") mkdirSync(dirname(join(this.folder, path)), { recursive: true });
    writeFileSync(full, content);
    chmodSync(full, mode);
  }

  commit(message: string): void {
    this.git("add", "-A");
    this.git("commit", "-q", "--allow-empty", "--allow-empty-message", "-m", message);
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
