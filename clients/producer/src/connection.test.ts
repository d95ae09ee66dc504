import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, it } from "vitest";
import { Connection, reasonOf } from "./connection.js";

it("asks its own server, whatever the path of its URL looks like", async () => {
  const asked: (string | undefined)[] = [];
  const server = createServer((request, response) => {
    asked.push(request.url);
    request.resume();
    response.end();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    // By the rules of URLs what follows two slashes is a host, and would be sent the token.
    for (const base of ["", "/", "//", "/bus/", "//elsewhere.invalid", "//elsewhere.invalid//"]) {
      const connection = new Connection(new URL(origin + base), 1);
      await connection.post("/v1/events", {}, Buffer.from("x"), { silenceMs: 1_000 });
      await connection.put("/v1/uploads?ticket=t", {}, Buffer.from("x"), { silenceMs: 1_000 });
      connection.close();
    }
  } finally {
    server.close();
  }
  const under = (path: string) => [`${path}/v1/events`, `${path}/v1/uploads?ticket=t`];
  const elsewhere = under("//elsewhere.invalid");
  expect(asked).toEqual([
    ...under(""),
    ...under(""),
    ...under(""),
    ...under("/bus"),
    ...elsewhere,
    ...elsewhere,
  ]);
});

it("takes no answer that does not end", async () => {
  const server = createServer((request, response) => {
    request.resume();
    const more = () => {
      while (!response.destroyed && response.write(Buffer.alloc(1024 * 1024)));
    };
    response.on("drain", more);
    more();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  const connection = new Connection(url, 1);
  try {
    const asked = connection.post("/v1/events", {}, Buffer.from("x"), {
      silenceMs: 1_000,
      signal: AbortSignal.timeout(10_000),
    });
    const failure: unknown = await asked.catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "EMSGSIZE" });
    expect(reasonOf(failure)).toBe("the answer does not end");
  } finally {
    connection.close();
    server.closeAllConnections();
    server.close();
  }
});
