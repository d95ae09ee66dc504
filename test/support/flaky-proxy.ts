import { connect, createServer, type Server, type Socket } from "node:net";
import { Random } from "../../services/main/workload/random.js";

/** Stands between a client and a server, and resets connections: at once for all, or at random when an answer comes. */
export class FlakyProxy {
  /** Share of the pieces of answers in place of which the connection is reset; what was asked has been done by then. */
  resetShare = 0;
  resets = 0;
  /** Bytes of answers that came through. */
  answered = 0;
  /** While true, nobody gets through. */
  refuses = false;
  private readonly sockets = new Set<Socket>();

  static async open(targetPort: number, seed: number, port = 0): Promise<FlakyProxy> {
    const server = createServer();
    const proxy = new FlakyProxy(server, new Random(seed));
    server.on("connection", (client) => proxy.join(client, targetPort));
    await new Promise<void>((resolve, reject) =>
      server.listen(port, "127.0.0.1", resolve).once("error", reject),
    );
    return proxy;
  }

  private constructor(
    private readonly server: Server,
    private readonly random: Random,
  ) {}

  get port(): number {
    return (this.server.address() as { port: number }).port;
  }

  private join(client: Socket, targetPort: number): void {
    if (this.refuses) {
      client.resetAndDestroy();
      return;
    }
    const target = connect(targetPort, "127.0.0.1");
    const both = [client, target];
    for (const socket of both) {
      this.sockets.add(socket);
      socket.on("error", () => undefined);
      socket.on("close", () => {
        this.sockets.delete(socket);
        for (const one of both) one.destroy();
      });
    }
    client.on("data", (bytes) => target.write(bytes));
    target.on("data", (bytes) => {
      if (this.random.unit() < this.resetShare) {
        this.resets++;
        client.resetAndDestroy();
      } else {
        this.answered += bytes.length;
        client.write(bytes);
      }
    });
  }

  resetAll(): void {
    for (const socket of this.sockets) {
      this.resets++;
      socket.resetAndDestroy();
    }
  }

  async close(): Promise<void> {
    this.resetAll();
    await new Promise((resolve) => this.server.close(resolve));
  }
}
