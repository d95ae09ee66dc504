import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { freePort, mavenJars, type RunningTool, startTool } from "./tool.js";

const VERSION = process.env.KAFKA_VERSION ?? "4.3.1";
const PASSWORD = "keystore-secret";

/** How long a start may take: the first one fetches Kafka. */
export const START_MS = 400_000;

export const SASL_USER = { username: "alice", password: "alice-secret" } as const;

const run = promisify(execFile);

/** Folder with Kafka's jars, which come by Maven. */
export const installKafka = () => {
  // Without a logger that prints, no line says when a broker is ready; and older versions bring another one.
  const logger = "org.slf4j:slf4j-simple:1.7.36";
  const kafka = [`org.apache.kafka:kafka_2.13:${VERSION}`, `org.apache.kafka:kafka-tools:${VERSION}`];
  return mavenJars(`kafka-with-tools-${VERSION}`, [...kafka, logger], ["org.slf4j:slf4j-reload4j"]);
};

export interface KafkaOptions {
  readonly nodes?: 1 | 3;
  /** With listeners that want TLS and a password. */
  readonly secure?: boolean;
  /** Port that clients are to be told of for each node, in place of its own: something stands between. */
  readonly advertised?: readonly number[];
  readonly ports?: readonly number[];
  readonly settings?: Readonly<Record<string, string>>;
}

interface Ports {
  readonly plain: number;
  readonly controller: number;
  readonly sasl: number;
  readonly tls: number;
  /** Brokers speak to each other where nothing stands between. */
  readonly internal: number;
}

/** Apache Kafka, the real thing: KRaft, each node broker and controller, on loopback. Its data go when it stops. */
export class KafkaCluster {
  private readonly nodes = new Map<number, RunningTool>();
  // As Kafka's own are: none begins with a "-", which the tool that formats takes for an option (one in 64 did).
  private readonly clusterId = `T${randomBytes(16).toString("base64url").slice(1)}`;

  static async start(options: KafkaOptions = {}): Promise<KafkaCluster> {
    const libs = await installKafka();
    const ports: Ports[] = [];
    for (let i = 0; i < (options.nodes ?? 1); i++) {
      ports.push({
        plain: options.ports?.[i] ?? (await freePort()),
        controller: await freePort(),
        sasl: await freePort(),
        tls: await freePort(),
        internal: await freePort(),
      });
    }
    const folder = await mkdtemp(join(tmpdir(), "tributary-kafka-"));
    const cluster = new KafkaCluster(libs, folder, ports, options);
    try {
      if (options.secure === true) await cluster.makeKeys();
      await Promise.all(ports.map((_, i) => cluster.format(i)));
      await Promise.all(ports.map((_, i) => cluster.startNode(i)));
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  private constructor(
    private readonly libs: string,
    private readonly folder: string,
    private readonly ports: readonly Ports[],
    private readonly options: KafkaOptions,
  ) {}

  /** host:port of each node, for plain connections. */
  get brokers(): string[] {
    return this.ports.map(({ plain }, i) => `127.0.0.1:${this.options.advertised?.[i] ?? plain}`);
  }
  /** For SASL without TLS. */
  get saslBrokers(): string[] {
    return this.ports.map(({ sasl }) => `127.0.0.1:${sasl}`);
  }
  /** For SASL over TLS. */
  get tlsBrokers(): string[] {
    return this.ports.map(({ tls }) => `localhost:${tls}`);
  }
  /** The authority of the brokers' certificates, in PEM. */
  get ca(): string {
    return readFileSync(join(this.folder, "broker.pem"), "utf8");
  }

  /** Resolves when the node serves. */
  async startNode(i: number): Promise<void> {
    const log = join(this.folder, `node${i}.log`);
    const flags = ["-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
    const node = await startTool({
      program: "java",
      args: [...flags, ...this.java("kafka.Kafka", this.file(i, "properties"))],
      log,
      ready: async () => (await readFile(log, "utf8")).includes("Kafka Server started"),
      seconds: 120,
    });
    this.nodes.set(i, node);
  }

  /** SIGKILL resolves when the node is gone; SIGSTOP and SIGCONT freeze it and let it go on. */
  async signal(i: number, signal: "SIGKILL" | "SIGSTOP" | "SIGCONT"): Promise<void> {
    const node = this.nodes.get(i)!;
    node.process.kill(signal);
    if (signal !== "SIGKILL") return;
    this.nodes.delete(i);
    await node.stop();
  }

  async stop(): Promise<void> {
    await Promise.all([...this.nodes.keys()].map((i) => this.signal(i, "SIGKILL")));
    await rm(this.folder, { recursive: true, force: true });
  }

  /** A tool of Kafka's own, such as its console consumer; resolves to what it prints. */
  async tool(main: string, ...args: string[]): Promise<string> {
    const { stdout } = await run(
      "java",
      ["-Xmx128m", "-XX:TieredStopAtLevel=1", ...this.java(main, ...args)],
      {
        maxBuffer: 64 * 1024 * 1024,
      },
    );
    return stdout;
  }

  private java(main: string, ...args: string[]): string[] {
    return ["-cp", join(this.libs, "*"), "-Dorg.slf4j.simpleLogger.defaultLogLevel=info", main, ...args];
  }

  private file(i: number, what: string): string {
    return join(this.folder, `node${i}.${what}`);
  }

  private async makeKeys(): Promise<void> {
    const store = ["-keystore", join(this.folder, "broker.p12"), "-storepass", PASSWORD, "-alias", "broker"];
    const certificate = "-genkeypair -keyalg RSA -keysize 2048 -validity 30 -storetype PKCS12";
    const names = "-dname CN=localhost -ext san=dns:localhost,ip:127.0.0.1 -ext bc=ca:true";
    await run("keytool", [...`${certificate} ${names}`.split(" "), ...store]);
    await run("keytool", ["-exportcert", "-rfc", "-file", join(this.folder, "broker.pem"), ...store]);
  }

  private async format(i: number): Promise<void> {
    await writeFile(this.file(i, "properties"), this.properties(i));
    const users = ["SCRAM-SHA-256", "SCRAM-SHA-512"].flatMap((mechanism) => [
      "--add-scram",
      `${mechanism}=[name=${SASL_USER.username},password=${SASL_USER.password}]`,
    ]);
    const properties = this.file(i, "properties");
    await this.tool("kafka.tools.StorageTool", "format", "-t", this.clusterId, "-c", properties, ...users);
  }

  private properties(i: number): string {
    const { plain, controller, sasl, tls, internal } = this.ports[i]!;
    const nodes = this.ports.length;
    const replicas = nodes === 1 ? "1" : "3";
    const scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    const user = `user_${SASL_USER.username}="${SASL_USER.password}"`;
    const listeners = [`PLAINTEXT://127.0.0.1:${plain}`, `CONTROLLER://127.0.0.1:${controller}`];
    const advertised = [`PLAINTEXT://127.0.0.1:${this.options.advertised?.[i] ?? plain}`];
    const secure = this.options.secure === true;
    const outer = secure ? [`SASL://127.0.0.1:${sasl}`, `SECURE://localhost:${tls}`] : [];
    const security: Record<string, string> = secure
      ? {
          "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
          ...Object.fromEntries(
            ["sasl", "secure"].flatMap((name) => [
              [`listener.name.${name}.scram-sha-512.sasl.jaas.config`, scram],
              [`listener.name.${name}.scram-sha-256.sasl.jaas.config`, scram],
              [
                `listener.name.${name}.plain.sasl.jaas.config`,
                `org.apache.kafka.common.security.plain.PlainLoginModule required ${user};`,
              ],
            ]),
          ),
          "ssl.keystore.location": join(this.folder, "broker.p12"),
          "ssl.keystore.type": "PKCS12",
          "ssl.keystore.password": PASSWORD,
        }
      : {};
    const all: Record<string, string> = {
      "process.roles": "broker,controller",
      "node.id": String(i + 1),
      "controller.quorum.voters": this.ports.map((p, n) => `${n + 1}@127.0.0.1:${p.controller}`).join(","),
      listeners: [...listeners, ...outer, `INTERNAL://127.0.0.1:${internal}`].join(","),
      "advertised.listeners": [...advertised, ...outer, `INTERNAL://127.0.0.1:${internal}`].join(","),
      "listener.security.protocol.map":
        "PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,SECURE:SASL_SSL",
      "inter.broker.listener.name": "INTERNAL",
      "controller.listener.names": "CONTROLLER",
      "log.dirs": join(this.folder, `node${i}`),
      "auto.create.topics.enable": "false",
      "group.initial.rebalance.delay.ms": "0",
      "offsets.topic.num.partitions": "4",
      "offsets.topic.replication.factor": replicas,
      "transaction.state.log.num.partitions": "4",
      "transaction.state.log.replication.factor": replicas,
      "transaction.state.log.min.isr": nodes === 1 ? "1" : "2",
      "replica.fetch.max.bytes": "16777216",
      "message.max.bytes": "16777216",
      "log.cleaner.dedupe.buffer.size": "4194304",
      "num.network.threads": "2",
      "num.io.threads": "4",
      ...security,
      ...this.options.settings,
    };
    return Object.entries(all)
      .map(([name, value]) => `${name}=${value}\n`)
      .join("");
  }
}
