/** How brokers are reached. What is in `sasl` and `tls` appears in no message and in no log. */
export interface BrokerSettings {
  /** host:port of brokers to begin with; the others are learnt from them. */
  readonly brokers: readonly string[];
  readonly clientId: string;
  readonly tls?: {
    /** PEM texts: the authorities to trust (the system's when absent), and our own certificate where brokers ask for one. */
    readonly ca?: string;
    readonly cert?: string;
    readonly key?: string;
    readonly serverName?: string;
  };
  readonly sasl?: {
    readonly mechanism: "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512";
    readonly username: string;
    readonly password: string;
  };
}

/** What a topic must be like, and how it is made where there is none. */
export interface TopicSettings {
  readonly topic: string;
  readonly partitions: number;
  readonly replicationFactor: number;
  readonly minInsyncReplicas: number;
  readonly retentionMs: number;
  readonly maxMessageBytes: number;
  /** Largest event that will be appended, with what a record adds to it. */
  readonly maxEventBytes: number;
  /** For development: topics whose events a lost disk can take along are not refused. */
  readonly allowFewReplicas: boolean;
}

export type Compression = "none" | "gzip" | "snappy" | "lz4" | "zstd";
