import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DynamoDBClient } from "@aws-sdk/client-dynamodb";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { answers, command, freePort, installed, startTool } from "./tool.js";

const VERSION = "2.6.1";
const PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/** Folder with its jars, which come by Maven. */
export const installDynamoDb = () =>
  installed(`dynamodb-local-${VERSION}`, async (folder) => {
    const pom = join(folder, "pom.xml");
    writeFileSync(
      pom,
      `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
       <groupId>tributary</groupId><artifactId>tools</artifactId><version>1</version><dependencies><dependency>
       <groupId>com.amazonaws</groupId><artifactId>DynamoDBLocal</artifactId><version>${VERSION}</version>
       </dependency></dependencies></project>`,
    );
    const flags = ["-q", "-B", "-ntp", "-f", pom, "-DincludeScope=runtime", `-DoutputDirectory=${folder}`];
    await command("mvn", [...flags, PLUGIN], folder);
  });

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
