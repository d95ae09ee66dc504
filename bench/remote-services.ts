import { KafkaCluster } from "../test/servers/kafka.js";
import { credentials, type S3Server, startS3 } from "../test/servers/s3.js";
import { HttpFaultProxy } from "../test/support/fault-proxy.js";
import { newBucket } from "../test/support/s3-lake.js";
import { S3Ledger } from "./s3-ledger.js";

const PREFIX = "lake";

export interface RemoteOptions {
  readonly nodes?: 1 | 3;
  readonly partitions: number;
  /** Before each request to S3 is passed on. */
  readonly delayMs?: number;
}

/**
 * Kafka and S3 of this command's own, on loopback, for as long as it runs. What goes to S3 goes by a proxy that counts
 * and, if asked, delays; it runs in this process, so that its CPU is none of ours.
 */
export class RemoteServices {
  readonly ledger = new S3Ledger(PREFIX);
  private constructor(
    readonly kafka: KafkaCluster,
    private readonly s3: S3Server,
    private readonly proxy: HttpFaultProxy,
    private readonly options: RemoteOptions,
  ) {}

  static async start(options: RemoteOptions): Promise<RemoteServices> {
    const [kafka, s3] = await Promise.all([
      KafkaCluster.start({ nodes: options.nodes ?? 1 }),
      startS3("versitygw"),
    ]);
    const proxy = await HttpFaultProxy.start(s3.endpoint);
    proxy.latencyMs = options.delayMs ?? 0;
    return new RemoteServices(kafka, s3, proxy, options);
  }

  /** A topic and a bucket of their own: settings of processes of ours, and of this one, which goes past the proxy. */
  async fresh(
    name: string,
  ): Promise<{ readonly env: NodeJS.ProcessEnv; readonly direct: NodeJS.ProcessEnv }> {
    const bucket = await newBucket(this.s3.endpoint);
    this.ledger.begin(bucket);
    this.proxy.answered = (request, body, status) => this.ledger.take(request, body, status);
    const { nodes = 1, partitions } = this.options;
    const at = (endpoint: string): NodeJS.ProcessEnv => ({
      ...credentials,
      AWS_REGION: "us-east-1",
      TRIBUTARY_STORAGE__KIND: "s3",
      TRIBUTARY_STORAGE__S3__BUCKET: bucket,
      TRIBUTARY_STORAGE__S3__PREFIX: PREFIX,
      TRIBUTARY_STORAGE__S3__ENDPOINT: endpoint,
      TRIBUTARY_STORAGE__S3__FORCE_PATH_STYLE: "true",
      TRIBUTARY_STREAM__KIND: "kafka",
      TRIBUTARY_STREAM__PARTITIONS: String(partitions),
      TRIBUTARY_STREAM__KAFKA__BROKERS: this.kafka.brokers.join(","),
      TRIBUTARY_STREAM__KAFKA__TOPIC: name,
      TRIBUTARY_STREAM__KAFKA__REPLICATION_FACTOR: String(nodes),
      TRIBUTARY_STREAM__KAFKA__MIN_INSYNC_REPLICAS: String(nodes === 1 ? 1 : 2),
      TRIBUTARY_STREAM__KAFKA__ALLOW_FEW_REPLICAS: "true",
      TRIBUTARY_BUS__MAX_LAG_BYTES: String(64 * 1024 ** 3),
    });
    return { env: at(this.proxy.endpoint), direct: at(this.s3.endpoint) };
  }

  async stop(): Promise<void> {
    await this.proxy.stop();
    await Promise.all([this.kafka.stop(), this.s3.stop()]);
  }
}
