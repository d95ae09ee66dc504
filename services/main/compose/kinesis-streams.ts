import type { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { connectDynamo } from "../../lease/connect-dynamo.js";
import { DynamoLeaseStore } from "../../lease/dynamo-lease-store.js";
import type { LeaseStore } from "../../lease/lease-store.js";
import { domainOf } from "../../stream/domains.js";
import { connectKinesis } from "../../stream/kinesis/connect.js";
import { KinesisMetrics } from "../../stream/kinesis/metrics.js";
import { KinesisReader } from "../../stream/kinesis/reader.js";
import { KinesisWriter } from "../../stream/kinesis/writer.js";
import { openLog } from "./runtime.js";
import type { StreamKind } from "./streams.js";

/** A stream for each domain, unless the configuration has one for all. */
export function kinesisStreams(config: Config, registry: Registry | undefined): StreamKind {
  const { kinesis } = config.stream;
  const { region, endpoint, leaseTable, leaseEndpoint, leaseMs, fanOut } = kinesis;
  const log = openLog(config);
  const metrics = registry === undefined ? {} : { metrics: KinesisMetrics.of(registry) };
  const client = connectKinesis({ region, endpoint, fanOut });
  const dynamo = connectDynamo({ region, endpoint: leaseEndpoint });
  const leases = (stream: string): Promise<LeaseStore> =>
    DynamoLeaseStore.open({ client: dynamo, table: leaseTable, group: stream });
  return {
    nameOf: (entityType) => {
      const domain = domainOf(entityType);
      return kinesis.stream ?? kinesis.streams[domain] ?? `${kinesis.streamPrefix}${domain}`;
    },
    writer: (stream) => KinesisWriter.open({ client, stream, leases, ...metrics }),
    reader: (stream) => KinesisReader.open({ client, stream, leases, log, fanOut, leaseMs, ...metrics }),
  };
}
