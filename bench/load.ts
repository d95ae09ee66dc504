import { connect, type Socket } from "node:net";
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
  /** As many as are taken when not set. */
  readonly eventsPerSecond?: number;
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

/** One keep-alive connection: a request goes out as soon as the one before it is answered. */
class Connection {
  private readonly socket: Socket;
  private answer = "";
  private waiting: ((status: number) => void) | undefined;

  constructor(
    private readonly url: URL,
    private readonly token: string,
  ) {
    this.socket = connect(Number(url.port), url.hostname);
    this.socket.setNoDelay(true);
    this.socket.setEncoding("latin1").on("data", (text: string) => this.receive(text));
    this.socket.on("error", (error) => {
      throw error;
    });
  }

  post(body: Buffer): Promise<number> {
    const head = `POST /v1/events HTTP/1.1\r\nhost: ${this.url.host}\r\nauthorization: Bearer ${this.token}\r\ncontent-type: application/x-protobuf\r\ncontent-length: ${body.length}\r\n\r\n`;
    this.socket.cork();
    this.socket.write(head);
    this.socket.write(body);
    this.socket.uncork();
    return new Promise((resolve) => {
      this.waiting = resolve;
    });
  }

  private receive(text: string): void {
    this.answer += text;
    const head = this.answer.indexOf("\r\n\r\n");
    const length = /content-length: (\d+)/i.exec(this.answer)?.[1];
    if (head < 0 || length === undefined || this.answer.length < head + 4 + Number(length)) return;
    const status = Number(this.answer.slice(9, 12));
    this.answer = "";
    this.waiting?.(status);
  }

  end(): void {
    this.socket.end();
  }
}

async function drive({
  url,
  token,
  connections,
  events,
  bodyEvents,
  eventsPerSecond = Number.POSITIVE_INFINITY,
}: LoadOrder): Promise<LoadReport> {
  const latencies: number[] = [];
  let next = 0;
  let retries = 0;
  const cpu = process.cpuUsage();
  const started = performance.now();
  const worker = async () => {
    const connection = new Connection(new URL(url), token);
    for (let at = next++; at < bodies.length; at = next++) {
      const body = bodies[at]!;
      const early = (at * bodyEvents * 1000) / eventsPerSecond - (performance.now() - started);
      if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
      for (;;) {
        const sent = performance.now();
        const status = await connection.post(body);
        if (status === 200) {
          latencies.push(performance.now() - sent);
          break;
        }
        if (status !== 429) throw new Error(`the bus answered ${status}`);
        retries++;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
    connection.end();
  };
  await Promise.all(Array.from({ length: connections }, worker));
  const seconds = (performance.now() - started) / 1000;
  const used = process.cpuUsage(cpu);
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
