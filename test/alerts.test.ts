import { readdirSync, readFileSync } from "node:fs";
import { join, sep } from "node:path";
import { collectDefaultMetrics, Registry } from "prom-client";
import { expect, test } from "vitest";
import { parse } from "yaml";
import { packageRoot } from "../services/base/paths.js";

/** Dashboard and alert rules (deploy/) ask for metrics that there are, by labels that these have; docs/ tells of all. */

interface Metric {
  readonly kind: string;
  readonly labels: readonly string[];
}

/** As the sources make them. */
function declared(): Map<string, Metric> {
  const found = new Map<string, Metric>();
  const services = join(packageRoot, "services");
  for (const name of readdirSync(services, { recursive: true, encoding: "utf8" })) {
    if (!name.endsWith(".ts") || name.endsWith(".test.ts")) continue;
    const source = readFileSync(join(services, name.split("/").join(sep)), "utf8");
    for (const [, kind, body] of source.matchAll(
      /new (Counter|Gauge|Histogram)(?:<[^>]*>)?\(\{(.*?)\n? *\}\)/gs,
    )) {
      const metric = /name: "([a-z_]+)"/.exec(body!)?.[1];
      if (metric === undefined) continue;
      const labels = [...(/labelNames: \[([^\]]*)\]/.exec(body!)?.[1] ?? "").matchAll(/"(\w+)"/g)];
      found.set(metric, { kind: kind!, labels: labels.map(([, label]) => label!) });
    }
  }
  return found;
}

/** What every process tells of itself, beside. */
async function ofProcesses(): Promise<Set<string>> {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  return new Set((await registry.getMetricsAsJSON()).map(({ name }) => name));
}

const BY_SCRAPE = ["instance", "job", "process", "le"];

interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly annotations: { readonly summary: string; readonly remedy: string };
}
const rules = (): Rule[] => {
  const text = readFileSync(join(packageRoot, "deploy/prometheus/tributary.rules.yml"), "utf8");
  return (parse(text) as { groups: { rules: Rule[] }[] }).groups.flatMap((group) => group.rules);
};
const panelQueries = (): string[] => {
  const text = readFileSync(join(packageRoot, "deploy/grafana/tributary.json"), "utf8");
  const { panels } = JSON.parse(text) as { panels: { targets?: { expr: string }[] }[] };
  return panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));
};

test("every metric and label that is asked for exists", async () => {
  const known = declared();
  const processes = await ofProcesses();
  expect(known.size).toBeGreaterThan(20);
  const asked = [...rules().map(({ expr }) => expr), ...panelQueries()];
  expect(asked.length).toBeGreaterThan(30);
  const wrong: string[] = [];
  for (const expr of asked) {
    const names = [...expr.matchAll(/\b((?:tributary|process|nodejs)_[a-z0-9_]+)\b/g)].map(
      ([, name]) => name!,
    );
    if (names.length === 0 && !/\bup\{/.test(expr)) wrong.push(`no metric: ${expr}`);
    const labels = new Set(BY_SCRAPE);
    for (const name of names) {
      const histogram = known.get(name.replace(/_(bucket|sum|count)$/, ""));
      const metric = known.get(name) ?? (histogram?.kind === "Histogram" ? histogram : undefined);
      if (metric === undefined && !processes.has(name)) wrong.push(`${name}: ${expr}`);
      for (const label of metric?.labels ?? []) labels.add(label);
    }
    const grouped = [...expr.matchAll(/by \(([^)]*)\)/g)].flatMap(([, list]) => list!.split(/,\s*/));
    const matched = [...expr.matchAll(/(\w+)=~?"/g)].map(([, label]) => label!);
    for (const label of [...grouped, ...matched]) if (!labels.has(label)) wrong.push(`${label}: ${expr}`);
  }
  expect(wrong).toEqual([]);
});

test("every metric stands in the operators' page, with its labels", () => {
  const page = readFileSync(join(packageRoot, "docs/operations.md"), "utf8");
  const told = new Map<string, string>();
  for (const [, names, labels] of page.matchAll(/^\| (`[a-z_`, ]+) \| ([a-z_`, ]*)\|[^|]+\|$/gm)) {
    for (const [, name] of names!.matchAll(/`(\w+)`/g)) told.set(`tributary_${name}`, labels!);
  }
  const made = [...declared()].map(([name, { labels }]) => [
    name,
    labels.map((one) => `\`${one}\``).join(", "),
  ]);
  expect(Object.fromEntries([...told].map(([name, labels]) => [name, labels.trim()]))).toEqual(
    Object.fromEntries(made),
  );
});

test("every alert says what it is and what to do, and has a case in the rules' own tests", () => {
  const cases = readFileSync(join(packageRoot, "deploy/prometheus/tributary.rules.test.yml"), "utf8");
  for (const { alert, annotations } of rules()) {
    expect(annotations.summary).toMatch(/\w/);
    expect(annotations.remedy).toMatch(/\w/);
    expect(cases).toContain(`alertname: ${alert}\n`);
  }
});
