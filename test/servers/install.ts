import { installDynamoDb } from "./dynamodb.js";
import { installKafka } from "./kafka.js";
import { installKinesis } from "./kinesis.js";
import { installS3 } from "./s3.js";

/**
 * Before the whole of `npm run test:integration`: what is not there yet is fetched and built, which takes minutes of both
 * cores, during which no suite could keep its times. Who runs some files by hand waits for their servers alone.
 */
export default async function install(): Promise<void> {
  if (process.env.npm_lifecycle_event !== "test:integration") return;
  await Promise.all([installS3(), installKafka(), installDynamoDb(), installKinesis()]);
}
