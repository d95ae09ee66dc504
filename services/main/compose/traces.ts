import { ROOT_CONTEXT, SpanKind, trace } from "@opentelemetry/api";
import { parseTraceParent } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base";
import { packageVersion } from "../../base/paths.js";
import type { Traces } from "../../base/traces.js";

/** What waits to be sent; beyond it steps are forgotten. */
const QUEUE = 10_000;
const SEND_MS = 5_000;

/** Traces that go to a collector of OpenTelemetry, by OTLP over HTTP. */
export function otlpTraces(endpoint: string, service: string): Traces {
  const exporter = new OTLPTraceExporter({ url: endpoint, timeoutMillis: SEND_MS });
  const provider = new BasicTracerProvider({
    resource: resourceFromAttributes({ "service.name": service, "service.version": packageVersion }),
    spanProcessors: [
      new BatchSpanProcessor(exporter, {
        maxQueueSize: QUEUE,
        scheduledDelayMillis: 1_000,
        exportTimeoutMillis: SEND_MS,
      }),
    ],
  });
  const tracer = provider.getTracer("tributary", packageVersion);
  return {
    on: true,
    step: (name, traceparent, start, end, attributes) => {
      const parent = parseTraceParent(traceparent);
      if (parent === null) return;
      const context = trace.setSpanContext(ROOT_CONTEXT, { ...parent, isRemote: true });
      const kind = name === "tributary.request" ? SpanKind.SERVER : SpanKind.CONSUMER;
      tracer.startSpan(name, { startTime: start, kind, attributes }, context).end(end);
    },
    // A collector that is gone is no reason to fail.
    close: () => provider.shutdown().catch(() => undefined),
  };
}
