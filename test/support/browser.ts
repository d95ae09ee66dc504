import { existsSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";

const INSTALLED = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** The machine's own Chromium, or the one TEST_CHROMIUM names; .ci/run installs it where there is none. */
export function launchBrowser(): Promise<Browser> {
  const executablePath = process.env.TEST_CHROMIUM ?? INSTALLED.find((path) => existsSync(path));
  if (executablePath === undefined)
    throw new Error("these tests need Chromium: install it, or name it in TEST_CHROMIUM");
  // A sandbox of its own is not to be had everywhere tests run; the page is ours.
  return chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
}
