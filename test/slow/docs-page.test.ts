import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CODES } from "../../services/base/codes.js";
import { launchBrowser } from "../support/browser.js";
import { makeToken, removeFolder, Server, temporaryFolder } from "../support/stack.js";

let data: string;
let server: Server;
let browser: Browser;
/** Addresses the page asked for, and what the browser complained of. */
const asked: string[] = [];
const complaints: string[] = [];

beforeAll(async () => {
  data = await temporaryFolder();
  server = await Server.start("up", data);
  browser = await launchBrowser();
});
afterAll(async () => {
  await browser?.close();
  await server?.stop();
  await removeFolder(data);
});

async function openDocs(): Promise<Page> {
  const page = await browser.newPage();
  page.on("request", (request) => asked.push(request.url()));
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  await page.goto(`${server.url}/docs`);
  await page.waitForSelector(".opblock");
  return page;
}

async function authorize(page: Page, token: string): Promise<void> {
  await page.click("button.authorize");
  await page.fill(".auth-container input", token);
  await page.click(".auth-container button.authorize");
  await page.click(".auth-container button.btn-done");
}

/** Opens a route, sends what its form holds, and resolves to the status and body that the page shows. */
async function tryIt(page: Page, path: string): Promise<{ status: string; body: string }> {
  const route = page.locator(".opblock", { has: page.locator(`[data-path="${path}"]`) });
  await route.locator(".opblock-summary-control").click();
  await route.locator("button.execute").click();
  const answer = route.locator(".live-responses-table");
  await answer.waitFor();
  return {
    status: (await answer.locator("tr.response td.response-col_status").first().innerText()).trim(),
    body: await answer.locator("tr.response .highlight-code code").first().innerText(),
  };
}

describe("the page at /docs, in a browser", () => {
  it("shows every route and every code, and asks nobody but this server", async () => {
    const page = await openDocs();
    const paths = await page
      .locator(".opblock-summary-path")
      .evaluateAll((nodes) => nodes.map((node) => node.getAttribute("data-path")));
    expect(paths.toSorted()).toEqual(
      // Jobs are asked for and listed, uploads asked for and put.
      [
        "/healthz /metrics /readyz /v1/bootstraps /v1/bootstraps /v1/bootstraps/{id} /v1/bootstraps/{id}/cancel",
        "/v1/bootstraps/{id}/confirm /v1/bootstraps/{id}/pause /v1/bootstraps/{id}/rejects /v1/bootstraps/{id}/report",
        "/v1/bootstraps/{id}/resume /v1/bootstraps/{id}/verify /v1/events /v1/query /v1/replays /v1/tables",
        "/v1/uploads /v1/uploads /v1/watermarks/{entityType}",
      ].flatMap((paths) => paths.split(" ")),
    );
    const listed = await page.locator(".info table code").allInnerTexts();
    for (const code of Object.keys(CODES)) expect(listed).toContain(code);
    expect(asked.length).toBeGreaterThan(4);
    expect(asked.filter((url) => !url.startsWith(`${server.url}/`) && !url.startsWith("data:"))).toEqual([]);
    expect(complaints).toEqual([]);
    await page.close();
  });

  it("refuses without a token, and answers with one", async () => {
    const page = await openDocs();
    expect((await tryIt(page, "/metrics")).status).toBe("401");
    await authorize(page, await makeToken(data, "analyst", "acme"));
    const { status, body } = await tryIt(page, "/v1/tables");
    expect(status).toBe("200");
    expect(JSON.parse(body)).toHaveProperty("tables");
    await page.close();
  });

  it("offers an event that the bus takes", async () => {
    const page = await openDocs();
    await authorize(page, await makeToken(data, "producer", "acme"));
    const { status, body } = await tryIt(page, "/v1/events");
    expect([status, JSON.parse(body)]).toMatchObject([
      "200",
      { accepted: 1, rejected: 0, results: [{ accepted: true }] },
    ]);
    await page.close();
  });
});
