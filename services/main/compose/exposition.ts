import { collectDefaultMetrics, type Registry } from "prom-client";

/** Adds what every process tells of itself: memory, CPU, event loop. `name` tells it from others that are scraped with it. */
export function tellOfProcess(registry: Registry, name: "server" | "ingest"): void {
  registry.setDefaultLabels({ process: name });
  collectDefaultMetrics({ register: registry });
}

/** Several processes' metrics in text exposition format as one: each metric once, its samples side by side. */
export function merged(texts: readonly string[]): string {
  const metrics = new Map<string, { readonly head: string[]; readonly samples: string[] }>();
  for (const text of texts) {
    const own = new Set<string>();
    let name = "";
    for (const line of text.split("\n")) {
      if (line === "") continue;
      const about = /^# (?:HELP|TYPE) (\S+)/.exec(line)?.[1];
      if (about !== undefined) name = about;
      const metric = metrics.get(name) ?? { head: [], samples: [] };
      if (!metrics.has(name)) {
        metrics.set(name, metric);
        own.add(name);
      }
      if (about === undefined) metric.samples.push(line);
      else if (own.has(name)) metric.head.push(line);
    }
  }
  return [...metrics.values()].map(({ head, samples }) => `${[...head, ...samples].join("\n")}\n`).join("\n");
}
