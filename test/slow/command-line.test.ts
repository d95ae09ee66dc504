import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { cli, removeFolder, temporaryFolder } from "../support/stack.js";

/** What commands do as processes of their own, beside what they answer. */

let folder: string;
beforeEach(async () => {
  folder = await temporaryFolder();
});
afterEach(() => removeFolder(folder));

describe("a command", () => {
  test.each([
    ["tail", "--no-follow"],
    ["stream", "move"],
  ])("that reads a log leaves no folder behind where there is none: %s", async (...command) => {
    const data = join(folder, "data");
    const { code, stderr } = await cli([...command, "--data", data, "--json"]);
    expect(code).toBe(1);
    expect(JSON.parse(stderr).error).toMatchObject({ code: "TRB-CONFIG" });
    // Made by anybody but a server, it would be open to all users of the machine.
    expect(existsSync(data)).toBe(false);
  });

  test("with --json has nothing but the error on standard error, whatever libraries want to say", async () => {
    const { code, stderr } = await cli(["table", "ls", "--data", join(folder, "data"), "--json"], {
      TRIBUTARY_STORAGE__KIND: "s3",
      TRIBUTARY_STORAGE__S3__BUCKET: "lake",
      TRIBUTARY_STORAGE__S3__ENDPOINT: "http://127.0.0.1:9",
      TRIBUTARY_STORAGE__S3__TIMEOUT_MS: "100",
      AWS_ACCESS_KEY_ID: "a",
      AWS_SECRET_ACCESS_KEY: "b",
    });
    expect(code).toBe(1);
    expect(JSON.parse(stderr).error).toMatchObject({ code: "TRB-STORE-FAILED" });
  });
});
