import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { aggregate, disaggregate } from "../../services/stream/kinesis/aggregate.js";
import { command, installed, npmPackage } from "../servers/tool.js";

const NODE = "4.2.8";
const PYTHON = "1.2.3";

let events: Buffer[];
let ours: Buffer;
beforeAll(() => {
  // None is empty: the Node package refuses that.
  events = Array.from({ length: 200 }, (_, i) => randomBytes(1 + ((i * 37) % 900)));
  ours = aggregate(
    events.map((bytes) => ({ bytes, start: 0, end: bytes.length })),
    "4294967295",
    String(2n ** 128n - 1n),
  );
});
const parts = (data: Uint8Array) => {
  const { starts, ends } = disaggregate(data)!;
  return starts.map((start, i) => Buffer.from(data.subarray(start, ends[i])));
};

interface AggregatorPackage {
  aggregate(
    records: readonly { partitionKey: string; data: Buffer }[],
    encoded: (record: { data: Buffer }, done: () => void) => void,
    after: () => void,
    failed: (error: unknown) => void,
  ): void;
  deaggregateSync(
    record: { partitionKey: string; sequenceNumber: string; data: string },
    checksums: boolean,
    after: (error: unknown, records?: readonly { data: string; explicitPartitionKey: string }[]) => void,
  ): void;
}

test("the Node package of AWS reads what we pack, and we what it packs", async () => {
  const folder = await npmPackage("aws-kinesis-agg", NODE);
  const foreign = createRequire(import.meta.url)(folder) as AggregatorPackage;
  const record = { partitionKey: "k", sequenceNumber: "1", data: ours.toString("base64") };
  const read = await new Promise<readonly { data: string; explicitPartitionKey: string }[]>(
    (resolve, reject) => {
      foreign.deaggregateSync(record, true, (error, found) => (error ? reject(error) : resolve(found ?? [])));
    },
  );
  expect(read.map(({ data }) => Buffer.from(data, "base64"))).toEqual(events);
  expect(new Set(read.map((each) => each.explicitPartitionKey))).toEqual(new Set([String(2n ** 128n - 1n)]));
  const theirs = await new Promise<Buffer>((resolve, reject) => {
    const records = events.map((data, i) => ({ partitionKey: `key-${i % 3}`, data }));
    foreign.aggregate(
      records,
      ({ data }) => resolve(data),
      () => undefined,
      reject,
    );
  });
  expect(parts(theirs)).toEqual(events);
});

test("the Python package of AWS reads what we pack, and we what it packs", async () => {
  const folder = await installed(`aws-kinesis-agg-python-${PYTHON}`, (into) =>
    command("python3", ["-m", "pip", "install", "-q", "--target", into, `aws_kinesis_agg==${PYTHON}`, "six"]),
  );
  const script = join(packageRoot, "test", "support", "kinesis-agg.py");
  const input = JSON.stringify({
    events: events.map((event) => event.toString("base64")),
    record: ours.toString("base64"),
  });
  const answer = JSON.parse(
    execFileSync("python3", [script, folder], { input, maxBuffer: 1e8 }).toString(),
  ) as {
    packed: string;
    unpacked: string[];
  };
  expect(answer.unpacked.map((text) => Buffer.from(text, "base64"))).toEqual(events);
  expect(parts(Buffer.from(answer.packed, "base64"))).toEqual(events);
});
