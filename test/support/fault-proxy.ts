import { once } from "node:events";
import {
  Agent,
  createServer,
  request as httpRequest,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  type ServerResponse,
} from "node:http";
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** What becomes of one HTTP request. */
export type HttpFault =
  /** The connection breaks; the server has not seen the request. */
  | { readonly kind: "reset-before" }
  /** The server has carried it out; the connection breaks instead of the answer. */
  | { readonly kind: "reset-after" }
  /** The server has carried it out; no answer ever comes. */
  | { readonly kind: "silent-after" }
  /** Answered in the server's place, which has not seen it. */
  | {
      readonly kind: "answer";
      readonly status: number;
      readonly body?: string;
      readonly headers?: OutgoingHttpHeaders;
    }
  /** The server has carried it out; its answer is replaced. */
  | { readonly kind: "answer-after"; readonly status: number; readonly body?: string }
  /** The request reaches the server so much later; the client has lost its connection by then. */
  | { readonly kind: "late"; readonly ms: number }
  /** The answer's body stops after so many bytes: for good, or for `ms`. */
  | { readonly kind: "stall"; readonly bytes: number; readonly ms?: number }
  /** The answer's body is cut off after so many bytes. */
  | { readonly kind: "cut"; readonly bytes: number }
  /** One byte of the answer's body is another. */
  | { readonly kind: "corrupt" }
  /** The server gets another body, or none at all, and its answer's is made another. */
  | { readonly kind: "edit"; readonly edit: (body: Buffer) => Edited };

export interface Edited {
  /** Undefined: answered in the server's place, which has not seen it. */
  readonly body: Buffer | undefined;
  /** Given the body of the server's answer. */
  readonly answer: (body: Buffer) => Buffer;
}

export interface ProxiedRequest {
  readonly method: string;
  /** With the query. */
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  /** Requests before it. */
  readonly number: number;
}

/** The answer S3 gives when it is asked for too much. */
export const slowDown: HttpFault = {
  kind: "answer",
  status: 503,
  headers: { "content-type": "application/xml" },
  body: "<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
};

/** An HTTP server on loopback in front of another one, which does to requests what a test says. The Host stays as it was. */
export class HttpFaultProxy {
  private readonly server = createServer((asked, answer) => void this.pass(asked, answer));
  private readonly agent = new Agent({ keepAlive: true });
  private readonly sockets = new Set<Socket>();
  private readonly running = new Set<Promise<unknown>>();
  /** Requests so far, by method. */
  readonly counts = new Map<string, number>();
  private number = 0;
  /** Before each request is passed on, in ms. */
  latencyMs = 0;
  /** Looked at for each request; undefined: all is well. */
  fault: (request: ProxiedRequest) => HttpFault | undefined = () => undefined;
  /** Told of each answer as it goes back. */
  answered: (request: Omit<ProxiedRequest, "number">, body: Buffer, status: number) => void = () => undefined;

  private constructor(private readonly target: URL) {
    this.server.on("connection", (socket) => {
      this.sockets.add(socket);
      socket.on("error", () => undefined).on("close", () => this.sockets.delete(socket));
    });
  }

  static async start(target: string): Promise<HttpFaultProxy> {
    const proxy = new HttpFaultProxy(new URL(target));
    proxy.server.listen(0, "127.0.0.1");
    await once(proxy.server, "listening");
    return proxy;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** Until the returned function is called, no request reaches the server: each connection breaks at once. */
  outage(): () => void {
    const before = this.fault;
    this.fault = () => ({ kind: "reset-before" });
    for (const socket of this.sockets) socket.destroy();
    return () => {
      this.fault = before;
    };
  }

  /** Resolves when what is late has arrived. */
  async settled(): Promise<void> {
    while (this.running.size > 0) await Promise.allSettled(this.running);
  }

  async stop(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
    this.agent.destroy();
    await once(this.server, "close");
  }

  private async pass(asked: IncomingMessage, answer: ServerResponse): Promise<void> {
    const { method = "GET", url: path = "/", headers } = asked;
    this.counts.set(method, (this.counts.get(method) ?? 0) + 1);
    const fault = this.fault({ method, path, headers, number: this.number++ });
    if (fault?.kind === "reset-before") {
      asked.socket.destroy();
      return;
    }
    const body = await read(asked).catch(() => undefined);
    if (body === undefined) return;
    if (this.latencyMs > 0) await sleep(this.latencyMs);
    if (fault?.kind === "answer") {
      answer.writeHead(fault.status, fault.headers).end(fault.body);
      return;
    }
    const edited = fault?.kind === "edit" ? fault.edit(body) : undefined;
    if (edited !== undefined && edited.body === undefined) {
      answer.writeHead(200, { "content-type": headers["content-type"] }).end(edited.answer(Buffer.alloc(0)));
      return;
    }
    const work = this.forward(asked, body, answer, fault, edited).catch(() => answer.destroy());
    this.running.add(work);
    await work.finally(() => this.running.delete(work));
  }

  private async forward(
    { method, url: path, headers, socket }: IncomingMessage,
    body: Buffer,
    answer: ServerResponse,
    fault: HttpFault | undefined,
    edited: Edited | undefined,
  ): Promise<void> {
    if (fault?.kind === "late") {
      socket.destroy();
      await sleep(fault.ms);
    }
    const { hostname: host, port } = this.target;
    const sent = edited?.body ?? body;
    const length = edited === undefined ? {} : { "content-length": sent.length };
    const forwarded = httpRequest({
      host,
      port,
      method,
      path,
      agent: this.agent,
      headers: { ...headers, ...length },
    });
    forwarded.end(sent);
    const [found] = (await once(forwarded, "response")) as [IncomingMessage];
    const came = await read(found);
    const bytes = edited?.answer(came) ?? came;
    switch (fault?.kind) {
      case "late":
        return;
      case "reset-after":
        socket.destroy();
        return;
      case "silent-after":
        return;
      case "answer-after":
        answer.writeHead(fault.status, { "content-type": "application/xml" }).end(fault.body);
        return;
      default:
    }
    this.answered({ method: method!, path: path!, headers }, body, found.statusCode!);
    const { "transfer-encoding": _, ...kept } = found.headers;
    const head = edited === undefined ? found.headers : { ...kept, "content-length": bytes.length };
    answer.writeHead(found.statusCode!, head);
    if (fault?.kind === "corrupt" && bytes.length > 0) bytes[bytes.length >> 1]! ^= 0xff;
    if (fault?.kind === "stall" || fault?.kind === "cut") {
      answer.write(bytes.subarray(0, fault.bytes));
      if (fault.kind === "cut") {
        await sleep(5);
        socket.destroy();
        return;
      }
      if (fault.ms === undefined) return;
      await sleep(fault.ms);
      answer.end(bytes.subarray(fault.bytes));
      return;
    }
    answer.end(bytes);
  }
}

async function read(message: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of message) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

/** The same for any protocol: latency, connections that break, and outages, on whole connections. */
export class TcpFaultProxy {
  private readonly server = createTcpServer((socket) => this.pass(socket));
  private readonly sockets = new Set<Socket>();
  /** Before each piece is passed on, either way, in ms. */
  latencyMs = 0;
  private down = false;

  private constructor(
    private readonly host: string,
    private readonly port: number,
  ) {}

  /** `listen`: the port to listen on, where clients are told of it by the server itself. */
  static async start(host: string, port: number, listen = 0): Promise<TcpFaultProxy> {
    const proxy = new TcpFaultProxy(host, port);
    proxy.server.listen(listen, "127.0.0.1");
    await once(proxy.server, "listening");
    return proxy;
  }

  get address(): string {
    return `127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** Breaks all connections there are. */
  reset(): void {
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  /** Until the returned function is called, connections break at once. */
  outage(): () => void {
    this.down = true;
    this.reset();
    return () => {
      this.down = false;
    };
  }

  async stop(): Promise<void> {
    this.reset();
    this.server.close();
    await once(this.server, "close");
  }

  private pass(near: Socket): void {
    if (this.down) {
      near.resetAndDestroy();
      return;
    }
    const far = connect(this.port, this.host);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      this.sockets.add(from);
      let last = Promise.resolve();
      from.on("data", (bytes: Buffer) => {
        if (this.latencyMs === 0 && to.writable) {
          to.write(bytes);
          return;
        }
        const due = Date.now() + this.latencyMs;
        last = last
          .then(() => sleep(Math.max(0, due - Date.now())))
          .then(() => {
            if (to.writable) to.write(bytes);
          });
      });
      from.on("end", () => void last.then(() => to.end()));
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.sockets.delete(from);
        void last.then(() => to.destroy());
      });
    }
  }
}
