import { DynamoDBClient } from "@aws-sdk/client-dynamodb";
import { NodeHttpHandler } from "@smithy/node-http-handler";

const CONNECT_MS = 2_000;
/** A renewal that hangs must leave time for the next within the life of a lease. */
const ANSWER_MS = 3_000;

/** Region and credentials are found as the SDK does where they are not given. */
export const connectDynamo = ({
  region,
  endpoint,
}: {
  readonly region?: string | undefined;
  readonly endpoint?: string | undefined;
}): DynamoDBClient =>
  new DynamoDBClient({
    ...(region === undefined ? {} : { region }),
    ...(endpoint === undefined ? {} : { endpoint }),
    requestHandler: new NodeHttpHandler({
      connectionTimeout: CONNECT_MS,
      requestTimeout: ANSWER_MS,
      throwOnRequestTimeout: true,
    }),
  });
