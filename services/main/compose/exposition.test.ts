import { Counter, Registry } from "prom-client";
import { expect, test } from "vitest";
import { merged, tellOfProcess } from "./exposition.js";

test("what two processes tell is one exposition: each metric once, no sample twice", async () => {
  const registries = (["server", "ingest"] as const).map((name) => {
    const registry = new Registry();
    tellOfProcess(registry, name);
    new Counter({ name: "both_total", help: "both", labelNames: ["k"], registers: [registry] }).inc({
      k: "v",
    });
    new Counter({ name: `${name}_total`, help: name, registers: [registry] }).inc();
    return registry;
  });
  const lines = merged(await Promise.all(registries.map((each) => each.metrics()))).split("\n");
  const heads = lines.filter((line) => line.startsWith("# TYPE"));
  expect(new Set(heads).size).toBe(heads.length);
  const samples = lines.filter((line) => line !== "" && !line.startsWith("#"));
  expect(new Set(samples.map((line) => line.replace(/ \S+$/, ""))).size).toBe(samples.length);
  const at = lines.indexOf("# TYPE both_total counter");
  expect(lines.slice(at + 1, at + 3)).toEqual([
    'both_total{k="v",process="server"} 1',
    'both_total{k="v",process="ingest"} 1',
  ]);
  for (const name of [
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "nodejs_eventloop_lag_p99_seconds",
  ])
    expect(samples.filter((line) => line.startsWith(`${name}{`)).length).toBe(2);
});

test("nothing from a process that does not run changes nothing", async () => {
  const registry = new Registry();
  new Counter({ name: "a_total", help: "a", registers: [registry] });
  const text = await registry.metrics();
  expect(merged([text, ""]).trim()).toBe(text.trim());
});
