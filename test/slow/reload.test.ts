import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { writeProtos } from "../support/inline-protos.js";
import { makeToken, removeFolder, Server, temporaryFolder, until } from "../support/stack.js";

const CONFIG = "{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}\n";
const ORDER = (fields: string) =>
  `syntax = "proto3"; package shop.v1; message Order { string title = 1; ${fields} }`;
const ORDERS = (columns: string) =>
  `${CONFIG}select tenant_id, entity_id, payload.title as title ${columns} from {{ source('raw', 'shop.v1.Order') }}`;
const sources = (...types: string[]) =>
  `version: 2\nsources:\n  - name: raw\n    tables:\n${types.map((type) => `      - name: ${type}\n`).join("")}`;

const children = (pid: number): number[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number);

describe("descriptors and models change under a running server", () => {
  let folder: string;
  let server: Server;
  let producer: string;
  let analyst: string;
  let operator: string;

  const write = (files: Readonly<Record<string, string>>): void => writeProtos(folder, files);
  const start = async (data: string, watchMs: number): Promise<void> => {
    server = await Server.start("up", join(folder, data), {
      TRIBUTARY_PROTO_DIRS: join(folder, "proto"),
      TRIBUTARY_TRANSFORMS_DIR: join(folder, "transforms"),
      TRIBUTARY_WATCH_MS: String(watchMs),
      TRIBUTARY_LOG__LEVEL: "info",
    });
    producer = await makeToken(join(folder, data), "producer");
    analyst = await makeToken(join(folder, data), "analyst", "acme");
    operator = await makeToken(join(folder, data), "operator");
  };
  const begin = (): void => {
    for (const name of ["proto", "transforms"]) rmSync(join(folder, name), { recursive: true, force: true });
    write({
      "proto/shop.proto": ORDER(""),
      "transforms/models/sources.yml": sources("shop.v1.Order"),
      "transforms/models/shop/orders.sql": ORDERS(""),
    });
  };

  beforeAll(async () => {
    folder = await temporaryFolder();
  });
  afterAll(async () => {
    await server?.stop();
    await removeFolder(folder);
  });

  let version = 0;
  /** "ok", or the code of the one event. */
  async function publish(
    type: string,
    id: string,
    fields: Readonly<Record<string, unknown>>,
  ): Promise<string> {
    const event = {
      ...{
        tenantId: "acme",
        entityType: type,
        entityId: id,
        operation: "OPERATION_UPDATED",
        version: ++version,
      },
      payload: { "@type": `type.googleapis.com/${type}`, ...fields },
    };
    const response = await fetch(`${server.url}/v1/events`, {
      method: "POST",
      headers: { authorization: `Bearer ${producer}`, "content-type": "application/json" },
      body: JSON.stringify([event]),
    });
    const body = (await response.json()) as { results: { accepted: boolean; code?: string }[] };
    return body.results[0]!.accepted ? "ok" : body.results[0]!.code!;
  }
  async function rows(sql: string): Promise<unknown> {
    const response = await fetch(`${server.url}/v1/query`, {
      method: "POST",
      headers: { authorization: `Bearer ${analyst}`, "content-type": "application/json" },
      body: JSON.stringify({ sql }),
    });
    const body = (await response.json()) as { rows?: unknown };
    return body.rows;
  }
  const comes = (sql: string, expected: unknown): Promise<void> =>
    until(
      `${sql} to be ${JSON.stringify(expected)}`,
      async () => JSON.stringify(await rows(sql)) === JSON.stringify(expected),
    ).catch(async (error: unknown) => {
      throw new Error(`${String(error)}, is ${JSON.stringify(await rows(sql))}\n${server.stderr}`);
    });
  const problem = async (): Promise<string | undefined> => {
    const body = (await (await fetch(`${server.url}/readyz`)).json()) as { project?: { code: string } };
    return body.project?.code;
  };
  const broken = async (code: string | undefined): Promise<void> => {
    await until(`the problem to be ${code}`, async () => (await problem()) === code);
    const headers = { authorization: `Bearer ${operator}` };
    const metrics = await (await fetch(`${server.url}/metrics`, { headers })).text();
    expect(metrics).toContain(`tributary_project_broken{process="server"} ${code === undefined ? 0 : 1}\n`);
  };

  it("what fits is in force without a restart; what does not leaves the old in force, and says so", async () => {
    begin();
    await start("data", 100);
    expect(await publish("shop.v1.Order", "1", { title: "one" })).toBe("ok");
    expect(await publish("shop.v1.Order", "1", { title: "one", cents: "5" })).toBe(
      "TRB-EVENT-PAYLOAD-DECODE",
    );
    await comes("select title from shop.orders order by 1", [["one"]]);

    // A new field, and a model that shows it: the table is rebuilt from raw.
    write({
      "proto/shop.proto": ORDER("int64 cents = 2;"),
      "transforms/models/shop/orders.sql": ORDERS(", payload.cents as cents"),
    });
    await until("the new field", async () => (await publish("shop.v1.Order", "2", { cents: "7" })) === "ok");
    await comes("select entity_id, title, cents from shop.orders order by 1", [
      ["1", "one", "0"],
      ["2", "", "7"],
    ]);

    // A new entity type with a new model; and a second model of an old type, which takes in what there was.
    write({
      "proto/stock.proto": `edition = "2023"; package stock.v1; message Item { string name = 1; }`,
      "transforms/models/sources.yml": sources("shop.v1.Order", "stock.v1.Item"),
      "transforms/models/stock/items.sql": `${CONFIG}select tenant_id, entity_id, payload.name as name from {{ source('raw', 'stock.v1.Item') }}`,
      "transforms/models/shop/titles.sql": ORDERS(""),
    });
    await until("the new type", async () => (await publish("stock.v1.Item", "a", { name: "A" })) === "ok");
    await comes("select entity_id, name from stock.items", [["a", "A"]]);
    await comes("select entity_id, title from shop.titles order by 1", [
      ["1", "one"],
      ["2", ""],
    ]);
    expect(await problem()).toBeUndefined();

    // A broken .proto beside a sound new one: neither is in force, all else goes on.
    write({
      "proto/bad.proto": `syntax = "proto3"; package bad; message Bad { Nope it = 1; }`,
      "proto/good.proto": `syntax = "proto3"; package good.v1; message Good { string name = 1; }`,
    });
    await broken("TRB-CONFIG");
    expect(server.stderr).toMatch(/bad\.proto, line 1, column \d+: .{1,3}Nope/);
    expect(await publish("good.v1.Good", "g", { name: "g" })).toBe("TRB-EVENT-ENTITY-TYPE");
    expect(await publish("shop.v1.Order", "3", { title: "three" })).toBe("ok");
    await comes("select title from shop.orders where entity_id = '3'", [["three"]]);
    write({ "proto/bad.proto": `syntax = "proto3"; package bad; message Bad { int32 it = 1; }` });
    await broken(undefined);
    expect(await publish("good.v1.Good", "g", { name: "g" })).toBe("ok");

    // Broken SQL beside a sound change.
    write({
      "transforms/models/shop/orders.sql": ORDERS(", payload.nope as nope"),
      "transforms/models/shop/titles.sql": ORDERS(", 'x' as more"),
    });
    await broken("TRB-MODEL-INVALID");
    expect(server.stderr).toMatch(/nope/);
    expect(await rows("select more from shop.titles")).toBeUndefined();
    // Ingest that dies begins with what is in force, not with what lies there.
    for (const pid of children(server.process.pid!)) process.kill(pid, "SIGKILL");
    expect(await publish("shop.v1.Order", "4", { title: "four" })).toBe("ok");
    await comes("select title, cents from shop.orders where entity_id = '4'", [["four", "0"]]);
    write({ "transforms/models/shop/orders.sql": ORDERS(", payload.cents * 2 as twice") });
    await broken(undefined);
    await comes("select twice from shop.orders where entity_id = '2'", [["14"]]);
    await comes("select more from shop.titles where entity_id = '4'", [["x"]]);

    // A field number that would read accepted bytes as something else.
    write({ "proto/shop.proto": ORDER("string cents = 2;") });
    await broken("TRB-CONFIG");
    expect(server.stderr).toMatch(/shop\.v1\.Order\.cents: number 2 was int64 and is string/);
    expect(await publish("shop.v1.Order", "5", { cents: "5" })).toBe("ok");
    await comes("select twice from shop.orders where entity_id = '5'", [["10"]]);
    expect(await server.stop()).toBe(0);
  });

  it("SIGHUP does the same where files are not watched", async () => {
    begin();
    await start("other", 0);
    expect(await publish("shop.v1.Order", "1", { title: "one" })).toBe("ok");
    await comes("select title from shop.orders", [["one"]]);
    write({ "proto/shop.proto": ORDER("int64 cents = 2;") });
    await new Promise((resolve) => setTimeout(resolve, 1500));
    expect(await publish("shop.v1.Order", "2", { cents: "7" })).toBe("TRB-EVENT-PAYLOAD-DECODE");
    server.process.kill("SIGHUP");
    await until("the new field", async () => (await publish("shop.v1.Order", "2", { cents: "7" })) === "ok");
    expect(await server.stop()).toBe(0);
  });
});
