import type { ConnectionOptions as TlsOptions } from "node:tls";
import { AuthenticationError, Connection, ResponseError } from "@platformatic/kafka";
import { errno, TributaryError } from "../../base/errors.js";
import { Unanswered } from "./failures.js";
import type { BrokerSettings } from "./settings.js";

interface Address {
  readonly host: string;
  readonly port: number;
}

/** A broker's id, or any broker at all. */
export type Node = number | "any";
/**
 * A broker works through a connection's requests one after the other, so what may wait there has a connection of its
 * own: fetches for events, a join for the other members.
 */
export type Lane = "control" | "produce" | "fetch" | "group";

/** A request of the protocol in one of its versions, as the client has it. */
export interface Api<Arguments extends unknown[], Response> {
  async(connection: Connection, ...args: Arguments): Promise<Response>;
}

const CONNECT_MS = 3_000;
const REQUEST_MS = 10_000;
/** The client's own timer leaves a connection unusable, so ours ends the connection first. */
const NEVER_MS = 2 ** 31 - 1;

/** Connections to the brokers of one cluster: made when needed, forgotten when they break. It never tries twice. */
export class Brokers {
  private readonly bootstrap: readonly Address[];
  private nodes: ReadonlyMap<number, Address> = new Map();
  private readonly connections = new Map<string, Promise<Connection>>();
  private closed = false;

  /** Errors: TRB-CONFIG. */
  constructor(private readonly settings: BrokerSettings) {
    this.bootstrap = settings.brokers.map((broker) => {
      const match = /^\[?([^\]]+?)\]?:(\d{1,5})$/.exec(broker);
      if (match === null) {
        throw new TributaryError("TRB-CONFIG", "stream.kafka.brokers: expected host:port, several by commas");
      }
      return { host: match[1]!, port: Number(match[2]) };
    });
  }

  /** Tells of the cluster's brokers, as its metadata has them. */
  learn(nodes: ReadonlyMap<number, Address>): void {
    this.nodes = nodes;
  }

  get known(): readonly number[] {
    return [...this.nodes.keys()];
  }

  /**
   * One request to one broker. An answer with error codes is an answer: who asks looks at them.
   * Errors: Unanswered; TRB-CONFIG when the brokers refuse our credentials.
   */
  async call<Arguments extends unknown[], Response>(
    node: Node,
    lane: Lane,
    api: Api<Arguments, Response>,
    args: Arguments,
    timeoutMs = REQUEST_MS,
  ): Promise<Response> {
    const connection = await this.connection(node, lane);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new Unanswered("a broker did not answer in time", true));
        connection.socket.destroy();
      }, timeoutMs);
      api
        .async(connection, ...args)
        .finally(() => clearTimeout(timer))
        .then(resolve, (error: unknown) => {
          if (error instanceof ResponseError) resolve(error.response as Response);
          else reject(new Unanswered("the connection to a broker broke", true, { cause: error }));
        });
    });
  }

  private async connection(node: Node, lane: Lane): Promise<Connection> {
    const addresses = node === "any" ? this.everybody() : [this.nodes.get(node)];
    let failure: unknown;
    for (const address of addresses) {
      if (address === undefined) continue;
      try {
        return await this.connected(address, lane);
      } catch (error) {
        failure = error;
      }
    }
    const setting = settingBehind(failure);
    if (setting !== undefined) {
      throw new TributaryError("TRB-CONFIG", setting, { cause: failure });
    }
    throw new Unanswered("no broker can be reached", false, { cause: failure });
  }

  /** Those with a connection first, then in an order of chance, so that no broker is asked by all. */
  private everybody(): Address[] {
    const all = new Map<string, Address>();
    for (const address of [...this.nodes.values(), ...this.bootstrap]) {
      all.set(`${address.host}:${address.port}`, address);
    }
    return [...all.values()]
      .map((address) => ({
        address,
        rank: Math.random() - (this.connections.has(keyOf(address, "control")) ? 1 : 0),
      }))
      .sort((a, b) => a.rank - b.rank)
      .map(({ address }) => address);
  }

  private connected(address: Address, lane: Lane): Promise<Connection> {
    if (this.closed) return Promise.reject(new Unanswered("the stream is closed", false));
    const key = keyOf(address, lane);
    const known = this.connections.get(key);
    if (known !== undefined) return known;
    const connection = new Connection(this.settings.clientId, this.options());
    const forget = () => {
      if (this.connections.get(key) === connecting) this.connections.delete(key);
    };
    // An error that nobody listens to ends the process.
    connection.on("error", forget);
    connection.on("close", forget);
    const connecting = (async () => {
      try {
        await connection.connect(address.host, address.port);
        return connection;
      } catch (error) {
        forget();
        connection.socket?.destroy();
        throw error;
      }
    })();
    this.connections.set(key, connecting);
    return connecting;
  }

  private options(): ConstructorParameters<typeof Connection>[1] {
    const { tls, sasl } = this.settings;
    const secure: TlsOptions = {
      ...(tls?.ca === undefined ? {} : { ca: tls.ca }),
      ...(tls?.cert === undefined ? {} : { cert: tls.cert }),
      ...(tls?.key === undefined ? {} : { key: tls.key }),
    };
    return {
      connectTimeout: CONNECT_MS,
      requestTimeout: NEVER_MS,
      ...(tls === undefined ? {} : { tls: secure }),
      ...(tls?.serverName === undefined ? {} : { tlsServerName: tls.serverName }),
      ...(sasl === undefined ? {} : { sasl }),
    };
  }

  async close(): Promise<void> {
    this.closed = true;
    const all = [...this.connections.values()];
    this.connections.clear();
    for (const connecting of all) {
      const connection = await connecting.catch(() => undefined);
      connection?.socket.destroy();
    }
  }
}

/** What is wrong with our settings, where that is why a connection failed: trying again does not help then. */
function settingBehind(failure: unknown): string | undefined {
  for (let error = failure; error instanceof Error; error = error.cause) {
    if (error instanceof AuthenticationError) {
      return "stream.kafka.sasl: expected a mechanism and credentials that the brokers accept";
    }
    if (/CERT|_TLS_|_SSL_|VERIFY/.test(errno(error) ?? "")) {
      return "stream.kafka.tls: expected brokers with certificates that are trusted here, and that trust ours";
    }
  }
  return undefined;
}

const keyOf = ({ host, port }: Address, lane: Lane): string => `${lane} ${host}:${port}`;
