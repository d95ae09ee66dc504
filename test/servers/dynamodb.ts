import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DynamoDBClient } from "@aws-sdk/client-dynamodb";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { answers, freePort, mavenJars, startTool } from "./tool.js";

const VERSION = "2.6.1";

/** Folder with its jars, which come by Maven. */
export const installDynamoDb = () =>
  mavenJars(`dynamodb-local-${VERSION}`, [`com.amazonaws:DynamoDBLocal:${VERSION}`]);

/** AWS's own DynamoDB Local, in memory. */
export async function startDynamoDb(): Promise<{
  readonly endpoint: string;
  readonly client: () => DynamoDBClient;
  stop(): Promise<void>;
}> {
  const jars = await installDynamoDb();
  const run = mkdtempSync(join(tmpdir(), "tributary-dynamodb-"));
  const port = await freePort();
  const endpoint = `http://127.0.0.1:${port}`;
  const java = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    `-Dsqlite4java.library.path=${jars}`,
  ];
  const server = ["-port", String(port), "-sharedDb", "-inMemory", "-disableTelemetry"];
  const tool = await startTool({
    program: "java",
    args: [
      ...java,
      "-cp",
      `${jars}/*`,
      "com.amazonaws.services.dynamodbv2.local.main.ServerRunner",
      ...server,
    ],
    log: join(run, "log"),
    ready: () => answers(endpoint),
  });
  return {
    endpoint,
    client: () =>
      new DynamoDBClient({
        region: "us-east-1",
        endpoint,
        credentials: { accessKeyId: "test", secretAccessKey: "test" },
        requestHandler: new NodeHttpHandler({}),
      }),
    stop: async () => {
      await tool.stop();
      rmSync(run, { recursive: true, force: true });
    },
  };
}
