import { execFile } from "node:child_process";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { startTestBus, type TestBus } from "../support/bus-server.js";
import { removeFolder, temporaryFolder } from "../support/stack.js";

const run = promisify(execFile);

let folder: string;
let bus: TestBus;
beforeAll(async () => {
  folder = await temporaryFolder();
  bus = await startTestBus();
});
afterAll(async () => {
  await bus.close();
  await removeFolder(folder);
});

it("@tributary/producer is installed alone, brings one package, and publishes", async () => {
  const packed = await run(
    "npm",
    ["pack", "-w", "@tributary/producer", "--json", "--pack-destination", folder],
    {
      cwd: packageRoot,
    },
  );
  // What its build says stands before the JSON.
  const [{ filename, files }] = JSON.parse(packed.stdout.slice(packed.stdout.indexOf("[\n"))) as [
    { filename: string; files: { path: string }[] },
  ];
  expect(
    files.map(({ path }) => path).filter((path) => /test|\.ts$/.test(path) && !path.endsWith(".d.ts")),
  ).toEqual([]);
  await writeFile(join(folder, "package.json"), '{"type": "module", "private": true}');
  const flags = ["--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts"];
  await run("npm", ["install", ...flags, join(folder, filename)], { cwd: folder });
  const modules = await readdir(join(folder, "node_modules"));
  expect(modules.filter((name) => !name.startsWith(".")).sort()).toEqual(["@bufbuild", "@tributary"]);
  expect(await readdir(join(folder, "node_modules", "@bufbuild"))).toEqual(["protobuf"]);

  const url = await bus.server.listen("127.0.0.1", 0);
  const token = (await bus.bearer()).slice("Bearer ".length);
  await writeFile(
    join(folder, "publish.js"),
    `import { Producer } from "@tributary/producer";
     import { POSTGRES_OUTBOX_SQL } from "@tributary/producer/postgres";
     const [url, token] = process.argv.slice(2);
     const producer = new Producer({ url, token });
     const event = { tenantId: "t", entityType: "tracker.v1.Issue", entityId: "1", operation: "deleted", version: 1 };
     const { position } = await producer.send(event);
     await producer.close();
     console.log(position !== "" && POSTGRES_OUTBOX_SQL.includes("create"));`,
  );
  const { stdout } = await run(process.execPath, ["publish.js", url, token], { cwd: folder });
  expect(stdout).toBe("true\n");
  expect(bus.stream.stored).toHaveLength(1);

  // Events that the bus refuses for now wait for seconds; a producer that was closed keeps no process alive for them.
  bus.stream.refuses = () => true;
  await writeFile(
    join(folder, "close.js"),
    `import { Producer } from "@tributary/producer";
     const [url, token] = process.argv.slice(2);
     const producer = new Producer({ url, token });
     const event = { tenantId: "t", entityType: "tracker.v1.Issue", entityId: "1", operation: "deleted", version: 1 };
     const sent = Array.from({ length: 20 }, (_, i) => producer.send({ ...event, entityId: String(i) }));
     const settled = Promise.allSettled(sent);
     const { undelivered } = await producer.close({ withinMs: 1000 });
     await settled;
     await new Promise((go) => setImmediate(go));
     console.log(undelivered.length, process.getActiveResourcesInfo().filter((name) => name === "Timeout"));`,
  );
  const closed = await run(process.execPath, ["close.js", url, token], { cwd: folder });
  expect(closed).toMatchObject({ stdout: "20 []\n", stderr: "" });
});
