import { KinesisClient } from "@aws-sdk/client-kinesis";
import { NodeHttp2Handler, NodeHttpHandler } from "@smithy/node-http-handler";

const CONNECT_MS = 3_000;
/** An answer that takes longer has been lost. */
const ANSWER_MS = 15_000;
const SOCKETS = 200;

/**
 * A client that makes one try a request: trying again is the writer's and the readers' own business, who know what is in
 * doubt. Region and credentials are found as the SDK does. HTTP/2, which pushing needs on AWS, is spoken where
 * `fanOut` and no `endpoint` (a local server) is given.
 */
export function connectKinesis(options: {
  readonly region?: string | undefined;
  readonly endpoint?: string | undefined;
  readonly fanOut?: boolean;
  readonly answerMs?: number;
}): KinesisClient {
  const { region, endpoint, fanOut = false, answerMs = ANSWER_MS } = options;
  return new KinesisClient({
    maxAttempts: 1,
    ...(region === undefined ? {} : { region }),
    ...(endpoint === undefined ? {} : { endpoint }),
    requestHandler:
      fanOut && endpoint === undefined
        ? // By itself it waits for minutes.
          new NodeHttp2Handler({ requestTimeout: answerMs, disableConcurrentStreams: true })
        : new NodeHttpHandler({
            connectionTimeout: CONNECT_MS,
            requestTimeout: answerMs,
            throwOnRequestTimeout: true,
            httpAgent: { maxSockets: SOCKETS },
            httpsAgent: { maxSockets: SOCKETS },
          }),
  });
}
