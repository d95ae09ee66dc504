import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { answers, freePort, npmPackage, startTool } from "./tool.js";

const LOCAL = "0.6.2";
const LITE = "3.3.3";
/** What kinesis-local lets take so long that tests would wait for it. */
const SLOW = [
  "CREATE_STREAM",
  "DELETE_STREAM",
  "REGISTER_STREAM_CONSUMER",
  "DEREGISTER_STREAM_CONSUMER",
].concat(["MERGE_SHARDS", "SPLIT_SHARD", "UPDATE_SHARD_COUNT", "UPDATE_STREAM_MODE"]);

const installLocal = () => npmPackage("kinesis-local", LOCAL);
const installLite = () => npmPackage("kinesalite", LITE);
export const installKinesis = () => Promise.all([installLocal(), installLite()]);

export interface KinesisServer {
  readonly endpoint: string;
  stop(): Promise<void>;
}

/**
 * "local" is kinesis-local: resharding, push and large records as AWS has them, no throttling, slow. "lite" is
 * kinesalite: fast, checks requests as AWS does, without child shards in answers, push or large records.
 */
export async function startKinesis(kind: "local" | "lite" = "local"): Promise<KinesisServer> {
  const run = mkdtempSync(join(tmpdir(), "tributary-kinesis-"));
  const port = await freePort();
  const endpoint = `http://127.0.0.1:${port}`;
  const log = join(run, "log");
  const ready = () => answers(endpoint);
  const tool = await (async () => {
    if (kind === "lite") {
      const folder = await installLite();
      const times = ["--createStreamMs", "50", "--deleteStreamMs", "50", "--updateStreamMs", "50"];
      const args = [join(folder, "cli.js"), "--port", String(port), ...times, "--shardLimit", "100"];
      return startTool({ program: process.execPath, args, log, ready });
    }
    const folder = await installLocal();
    const env = {
      KINESIS_MOCK_PLAIN_PORT: String(port),
      KINESIS_MOCK_TLS_PORT: String(await freePort()),
      KINESIS_MOCK_CERT_PATH: join(folder, "server.json"),
      LOG_LEVEL: "WARN",
      SHARD_LIMIT: "1000",
      ...Object.fromEntries(SLOW.map((name) => [`${name}_DURATION`, "50ms"])),
    };
    return startTool({ program: process.execPath, args: [join(folder, "main.js")], env, log, ready });
  })();
  return {
    endpoint,
    stop: async () => {
      await tool.stop();
      rmSync(run, { recursive: true, force: true });
    },
  };
}
