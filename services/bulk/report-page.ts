import { grouped, printable } from "../base/in-words.js";
import type { ReportTable, ReportView, Section } from "./report-view.js";

/** Of a page that names any tenant: nothing is fetched for it, and nothing in it runs. */
export const PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

const STYLE = `
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
.verdict { font-size: 1.15rem; margin: .5rem 0 1.5rem; padding: .5rem .8rem; border-left: .35rem solid gray }
.good { border-color: seagreen } .bad { border-color: crimson }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 0 1rem }
dt { opacity: .7 } dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .93rem }
caption { text-align: left; font-weight: 600; padding: .3rem 0 } th { text-align: left; opacity: .7; font-weight: 500 }
th, td { padding: .15rem .9rem .15rem 0; border-bottom: 1px solid #8884; vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums } code { font-size: .85rem; overflow-wrap: anywhere }
`;

/** One page that stands by itself, as it is printed or mailed. */
export function reportPage({ title, good, verdict, sections }: ReportView): string {
  const look = good === undefined ? "" : good ? " good" : " bad";
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer"><title>${text(title)}</title><style>${STYLE}</style></head><body>
<h1>${text(title)}</h1>
<p class="verdict${look}">${text(verdict)}</p>
${sections.map(sectionHtml).join("\n")}
</body></html>
`;
}

const sectionHtml = ({ heading, facts = [], tables = [] }: Section): string =>
  [
    `<h2>${text(heading)}</h2>`,
    facts.length === 0
      ? ""
      : `<dl>${facts.map(([name, value]) => `<dt>${text(name)}</dt><dd>${cell(value)}</dd>`).join("\n")}</dl>`,
    ...tables.map(tableHtml),
  ]
    .filter((part) => part !== "")
    .join("\n");

function tableHtml({ caption, columns, rows, more, fine }: ReportTable): string {
  const numeric = columns.map(
    (_, at) => rows.length > 0 && rows.every((row) => NUMBER.test(String(row[at]))),
  );
  const look = (at: number) => (numeric[at] === true ? ' class="n"' : "");
  const head = columns.map((name, at) => `<th${look(at)}>${text(name)}</th>`).join("");
  const body = rows.map(
    (row) => `<tr>${row.map((value, at) => `<td${look(at)}>${cell(value)}</td>`).join("")}</tr>`,
  );
  const rest = more === undefined ? "" : `<p>… and ${grouped(more)} more</p>`;
  const name = caption === undefined || fine ? "" : `<caption>${text(caption)}</caption>`;
  const table = `<div class="wide"><table>${name}<thead><tr>${head}</tr></thead><tbody>
${body.join("\n")}
</tbody></table></div>${rest}`;
  return fine ? `<details><summary>${text(caption ?? "")}</summary>${table}</details>` : table;
}

const NUMBER = /^(-?\d[\d,]*)?$/;
const HEX = /^[0-9a-f]{16,}( ≠ [0-9a-f]{16,})?$/;

const cell = (value: string | number): string => {
  const shown = text(String(value));
  return HEX.test(shown) ? `<code>${shown}</code>` : shown;
};

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Whatever anybody has called anything: neither markup nor what turns the text around. */
const text = (value: string): string => printable(value).replace(/[&<>"']/g, (one) => ENTITIES[one]!);
