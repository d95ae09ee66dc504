import { Agent, request } from "node:http";
import { ProtoRegistry } from "../services/contracts/registry.js";
import { TrackerWorkload } from "../services/main/workload/generator.js";

/**
 * The load generator, in a process of its own: encodes its bodies first, then sends them over keep-alive connections,
 * each as soon as the one before it is answered. Loopback only; ends when all are sent.
 */
export interface LoadOrder {
  readonly url: string;
  readonly token: string;
  readonly protoDirs: readonly string[];
  readonly events: number;
  readonly bodyEvents: number;
  readonly eventBytes: number;
  readonly connections: number;
  readonly seed: number;
  readonly tenants: number;
  readonly entities: number;
}

export interface LoadReport {
  readonly events: number;
  readonly bytes: number;
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly retries: number;
  readonly latencyMs: { readonly p50: number; readonly p99: number };
}

export type FromLoad = { readonly encoded: true } | { readonly report: LoadReport };

let order: LoadOrder | undefined;
let bodies: Buffer[] = [];

process.on("message", (message: { order?: LoadOrder; go?: true }) => {
  if (message.order !== undefined) {
    order = message.order;
    const { seed, tenants, entities, events, bodyEvents, eventBytes } = order;
    const workload = new TrackerWorkload(ProtoRegistry.load(order.protoDirs), {
      seed,
      tenants,
      entities,
      events,
      bodyEvents,
      eventBytes,
    });
    bodies = [...workload.bodies()].map(({ bytes }) => bytes);
    process.send?.({ encoded: true } satisfies FromLoad);
  } else if (message.go && order !== undefined) {
    void drive(order).then((report) => process.send?.({ report } satisfies FromLoad));
  }
});
process.on("disconnect", () => process.exit(0));

async function drive({ url, token, connections, events }: LoadOrder): Promise<LoadReport> {
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  const latencies: number[] = [];
  let next = 0;
  let retries = 0;
  const cpu = process.cpuUsage();
  const started = performance.now();
  const worker = async () => {
    for (let body = bodies[next++]; body !== undefined; body = bodies[next++]) {
      for (;;) {
        const sent = performance.now();
        const status = await post(agent, url, token, body);
        if (status === 200) {
          latencies.push(performance.now() - sent);
          break;
        }
        if (status !== 429) throw new Error(`the bus answered ${status}`);
        retries++;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  };
  await Promise.all(Array.from({ length: connections }, worker));
  const seconds = (performance.now() - started) / 1000;
  const used = process.cpuUsage(cpu);
  agent.destroy();
  latencies.sort((a, b) => a - b);
  const at = (share: number) =>
    latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))] ?? 0;
  return {
    events,
    bytes: bodies.reduce((sum, body) => sum + body.length, 0),
    seconds,
    cpuSeconds: (used.user + used.system) / 1e6,
    retries,
    latencyMs: { p50: at(0.5), p99: at(0.99) },
  };
}

function post(agent: Agent, url: string, token: string, body: Buffer): Promise<number> {
  return new Promise((resolve, reject) => {
    const outgoing = request(
      `${url}/v1/events`,
      {
        method: "POST",
        agent,
        headers: {
          authorization: `Bearer ${token}`,
          "content-type": "application/x-protobuf",
          "content-length": body.length,
        },
      },
      (response) => {
        response.resume();
        response.on("end", () => resolve(response.statusCode ?? 0));
      },
    );
    outgoing.on("error", reject);
    outgoing.end(body);
  });
}
