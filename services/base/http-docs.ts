import { CODES } from "./codes.js";

interface Operation {
  readonly summary?: string;
  readonly description?: string;
  readonly security?: readonly unknown[];
  readonly requestBody?: { readonly content?: Readonly<Record<string, unknown>> };
  readonly responses?: Readonly<
    Record<string, { readonly description?: string; readonly content?: Readonly<Record<string, unknown>> }>
  >;
}

/** The OpenAPI document as one page of HTML that loads nothing: routes, bodies, answers, and the list of codes. */
export function docsPage(document: object): string {
  const { info, paths } = document as {
    info?: { title?: string; version?: string; description?: string };
    paths?: Record<string, Record<string, Operation>>;
  };
  const routes = Object.entries(paths ?? {}).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => routeSection(method, path, operation)),
  );
  const codes = Object.entries(CODES).map(
    ([code, { status, retry, summary, remedy }]) =>
      `<tr><td><code>${code}</code><td>${status}<td>${html(summary)}<td>${html(remedy)}<td>${retry ? "yes" : "no"}`,
  );
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${html(info?.title ?? "API")}</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h2{margin-top:2.5rem;border-bottom:1px solid #ccc}code,h3{font-family:ui-monospace,monospace}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #ccc;padding:.3rem .5rem;text-align:left;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#8bf}}
</style><h1>${html(info?.title ?? "API")} <small>${html(info?.version ?? "")}</small></h1>
<p>${html(info?.description ?? "")} The same as an OpenAPI document: <a href="/docs/json">/docs/json</a>.
<h2>Routes</h2>${routes.join("\n")}
<h2>Codes</h2><table><tr><th>code<th>status<th>what happened<th>remedy<th>does a retry help
${codes.join("\n")}</table></html>
`;
}

function routeSection(method: string, path: string, operation: Operation): string {
  const takes = Object.keys(operation.requestBody?.content ?? {});
  const answers = Object.entries(operation.responses ?? {}).map(([status, answer]) => {
    const types = Object.keys(answer.content ?? {}).join(", ");
    return `<tr><td>${html(status)}<td>${html(answer.description ?? "")}<td>${html(types)}`;
  });
  return `<h3>${html(method.toUpperCase())} ${html(path)}</h3><p>${html(operation.summary ?? "")}.
${html(operation.description ?? "")} ${operation.security?.length ? "Needs a token." : "Open."}
${takes.length > 0 ? `<p>Takes ${takes.map((type) => `<code>${html(type)}</code>`).join(", ")}.` : ""}
<table><tr><th>status<th>meaning<th>as${answers.join("\n")}</table>`;
}

const html = (text: string): string =>
  text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
