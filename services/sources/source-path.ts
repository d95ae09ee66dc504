import { TributaryError } from "../base/errors.js";
import { shown } from "./root.js";

/** Where a source lies: a root's name, and what is below it ("" for all of it). */
export interface SourcePath {
  readonly root: string;
  readonly path: string;
}

const MAX_CHARACTERS = 2048;

/**
 * Reads `<root>/<path>`, or a URL (s3://bucket/key, file:///folder) that lies below one of the roots. `urls` are the
 * roots' own, by name; of several that hold a URL the closest stands. Nothing is looked at yet.
 * Errors: TRB-SOURCE-ROOT, TRB-SOURCE-PATH.
 */
export function parseSource(text: string, urls: ReadonlyMap<string, string>): SourcePath {
  if (text.length > MAX_CHARACTERS) throw badPath("source", `at most ${MAX_CHARACTERS} characters`);
  const parsed = /^[A-Za-z][A-Za-z0-9+.-]*:/.test(text) ? ofUrl(text, urls) : ofName(text, urls);
  checkPath(parsed);
  return parsed;
}

function ofName(text: string, urls: ReadonlyMap<string, string>): SourcePath {
  const slash = text.indexOf("/");
  const root = slash < 0 ? text : text.slice(0, slash);
  if (!urls.has(root)) throw noRoot();
  // A slash at the end says that a folder is meant.
  return { root, path: slash < 0 ? "" : text.slice(slash + 1).replace(/(?<=[^/])\/$/, "") };
}

function ofUrl(text: string, urls: ReadonlyMap<string, string>): SourcePath {
  const place = text.startsWith("file:///") ? decoded(text.slice("file://".length)) : text;
  let found: SourcePath | undefined;
  let longest = -1;
  for (const [root, url] of urls) {
    const base = url.replace(/\/+$/, "");
    if (base.length <= longest || !(place === base || place.startsWith(`${base}/`))) continue;
    found = { root, path: place.slice(base.length + 1).replace(/(?<=[^/])\/$/, "") };
    longest = base.length;
  }
  if (found === undefined) throw noRoot();
  return found;
}

function decoded(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    throw badPath("source", "a file URL with whole percent-encoded characters");
  }
}

/** Errors: TRB-SOURCE-PATH for what could lead elsewhere, here or wherever it is decoded once more. */
function checkPath({ root, path }: SourcePath): void {
  if (path === "") return;
  if (!path.isWellFormed() || path.includes("\uFFFD")) throw badPath(root, "whole characters");
  for (const name of path.split("/")) {
    for (const form of [name, ...undone(name)]) {
      if (form === "" || form === "." || form === "..") {
        throw badPath(shown(root, path), "names with one / between them, none of them . or ..");
      }
      if (CONTROL.test(form)) {
        throw badPath(shown(root, path), "names without backslashes and control characters");
      }
      if (form.includes("/")) throw badPath(shown(root, path), "names without an encoded /");
    }
  }
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
const CONTROL = /[\u0000-\u001f\u007f-\u009f\\\u2028\u2029]/;

/** What percent-decoding makes of a name, again and again as others may do it, and the plain form of wide letters. */
function* undone(name: string): Generator<string> {
  yield name.normalize("NFKC");
  let form = name;
  for (let times = 0; times < 3; times++) {
    const next = form.replace(/%([0-9a-f]{2})/gi, (_, hex: string) =>
      String.fromCharCode(Number.parseInt(hex, 16)),
    );
    if (next === form) return;
    form = next;
    yield form;
  }
}

const noRoot = () =>
  new TributaryError(
    "TRB-SOURCE-ROOT",
    "source: expected <root>/<path> of a root in bulk.sources, or a URL below one",
  );

const badPath = (where: string, expected: string) =>
  new TributaryError("TRB-SOURCE-PATH", `${where}: expected ${expected}`);
