import { setTimeout as sleep } from "node:timers/promises";
import { createTopicsV7, describeConfigsV4, metadataV12 } from "@platformatic/kafka";
import { TributaryError } from "../../base/errors.js";
import type { Brokers } from "./brokers.js";
import { checkCode, KAFKA, Refused, Unanswered } from "./failures.js";
import type { TopicSettings } from "./settings.js";

/** What the cluster said of the topic last. */
export interface TopicState {
  /** Another when the topic was deleted and made anew. */
  readonly id: string;
  /** Broker that leads each partition; -1 while there is none. */
  readonly leaders: readonly number[];
  readonly replicas: readonly number[];
}

const TOPIC_RESOURCE = 2;
/** How long a start waits for brokers, and for a topic to be known by all of them. */
const START_MS = 15_000;
const PAUSE_MS = 200;
const ASK_MS = 5_000;
/** How long a broker may take to make a topic; shorter than an answer may take. */
const CREATE_MS = 8_000;

/** One topic as the brokers see it. */
export class Topic {
  private current: TopicState;
  private refreshing: Promise<TopicState> | undefined;

  private constructor(
    readonly brokers: Brokers,
    readonly name: string,
    private limit: number,
    state: TopicState,
    private readonly pinned: boolean,
  ) {
    this.current = state;
  }

  /**
   * Finds the topic, or makes it, and looks whether it keeps what is put into it. `pinned`: a topic made anew in its
   * place is an error (TRB-STREAM-REPLACED), not what is meant by now.
   * Errors: TRB-CONFIG, naming what was found; TRB-BUS-STREAM-DOWN when no broker answers.
   */
  static async open(
    brokers: Brokers,
    settings: TopicSettings,
    { pinned }: { readonly pinned: boolean },
  ): Promise<Topic> {
    const until = performance.now() + START_MS;
    for (;;) {
      try {
        const state = await findOrCreate(brokers, settings);
        const maxMessageBytes = await check(brokers, settings, state);
        return new Topic(brokers, settings.topic, maxMessageBytes, state, pinned);
      } catch (error) {
        const mayPass = error instanceof Unanswered || (error instanceof Refused && PASSING.has(error.code));
        if (!mayPass) throw error;
        if (performance.now() > until) {
          throw new TributaryError("TRB-BUS-STREAM-DOWN", "the Kafka brokers cannot be reached", {
            cause: error,
          });
        }
        await sleep(PAUSE_MS);
      }
    }
  }

  get state(): TopicState {
    return this.current;
  }

  /** Name of the stream: another for each life of the topic, so that positions never mean two events. */
  get streamName(): string {
    return `kafka-${this.current.id}`;
  }

  /**
   * A question whose answer depends on who leads what: asked again for a while, as leaders move.
   * Errors: TRB-STREAM-REPLACED; Unanswered, Refused.
   */
  async ask<T>(question: () => Promise<T>): Promise<T> {
    const until = performance.now() + ASK_MS;
    for (;;) {
      try {
        return await question();
      } catch (error) {
        const mayPass = error instanceof Unanswered || (error instanceof Refused && PASSING.has(error.code));
        if (!mayPass || performance.now() > until) throw error;
        await sleep(PAUSE_MS);
        await this.refresh();
      }
    }
  }

  /** What max.message.bytes was when somebody looked last. */
  get maxMessageBytes(): number {
    return this.limit;
  }

  /** Looks. Errors: Unanswered, Refused. */
  async relearnLimit(): Promise<void> {
    this.limit = Number((await configsOf(this.brokers, this.name)).get("max.message.bytes") ?? this.limit);
  }

  /** Undefined where nothing is forgotten for its age. Errors: Unanswered, Refused. */
  async retentionMs(): Promise<number | undefined> {
    const ms = Number((await configsOf(this.brokers, this.name)).get("retention.ms") ?? -1);
    return ms < 0 ? undefined : ms;
  }

  /** The same topic over connections of its own. */
  over(brokers: Brokers): Topic {
    const { name, maxMessageBytes, current, pinned } = this;
    return new Topic(brokers, name, maxMessageBytes, current, pinned);
  }

  /**
   * Asks again, once for all who ask at the same time.
   * Errors: Unanswered; Refused while there is no such topic; TRB-STREAM-REPLACED.
   */
  refresh(): Promise<TopicState> {
    this.refreshing ??= find(this.brokers, this.name)
      .then((state) => {
        if (state === undefined) throw new Refused("metadata", KAFKA.UNKNOWN_TOPIC_OR_PARTITION);
        // Positions of the one mean nothing in the other.
        if (this.pinned && state.id !== this.current.id) throw new TributaryError("TRB-STREAM-REPLACED");
        this.current = state;
        return state;
      })
      .finally(() => {
        this.refreshing = undefined;
      });
    return this.refreshing;
  }
}

/** Undefined when there is no such topic. */
async function find(brokers: Brokers, topic: string): Promise<TopicState | undefined> {
  const response = await brokers.call("any", "control", metadataV12.api, [[topic], false, false]);
  brokers.learn(new Map(response.brokers.map(({ nodeId, host, port }) => [nodeId, { host, port }])));
  const found = response.topics[0];
  if (found === undefined || found.errorCode === KAFKA.UNKNOWN_TOPIC_OR_PARTITION) return undefined;
  if (found.errorCode !== KAFKA.LEADER_NOT_AVAILABLE) checkCode("metadata", found.errorCode);
  const leaders = new Array<number>(found.partitions.length).fill(-1);
  const replicas = new Array<number>(found.partitions.length).fill(0);
  for (const partition of found.partitions) {
    leaders[partition.partitionIndex] = partition.leaderId;
    replicas[partition.partitionIndex] = partition.replicaNodes.length;
  }
  return { id: found.topicId.replaceAll("-", ""), leaders, replicas };
}

async function findOrCreate(brokers: Brokers, settings: TopicSettings): Promise<TopicState> {
  const found = await find(brokers, settings.topic);
  if (found !== undefined) {
    if (found.leaders.length === 0 || found.leaders.includes(-1)) {
      throw new Refused("metadata", KAFKA.LEADER_NOT_AVAILABLE);
    }
    return found;
  }
  // With one broker there is one place for it; the check that follows tells whether that will do.
  const few = settings.allowFewReplicas
    ? Math.min(settings.replicationFactor, brokers.known.length)
    : undefined;
  const replicationFactor = few ?? settings.replicationFactor;
  const minInsync = Math.min(settings.minInsyncReplicas, replicationFactor);
  const wanted = {
    name: settings.topic,
    numPartitions: settings.partitions,
    replicationFactor,
    assignments: [],
    configs: [
      { name: "min.insync.replicas", value: String(minInsync) },
      { name: "cleanup.policy", value: "delete" },
      { name: "retention.ms", value: String(settings.retentionMs) },
      { name: "max.message.bytes", value: String(settings.maxMessageBytes) },
      { name: "unclean.leader.election.enable", value: "false" },
    ],
  };
  const response = await brokers.call("any", "control", createTopicsV7.api, [[wanted], CREATE_MS, false]);
  const created = response.topics[0];
  const code = created?.errorCode ?? KAFKA.NONE;
  if (code !== KAFKA.NONE && code !== KAFKA.TOPIC_ALREADY_EXISTS) {
    if (PASSING.has(code)) throw new Refused("create topic", code);
    throw new TributaryError(
      "TRB-CONFIG",
      `stream.kafka.topic: expected a topic that is there or can be made, with ${settings.partitions} partitions and ` +
        `${replicationFactor} replicas; the broker answered with error ${code}: ${created?.errorMessage ?? ""}`,
    );
  }
  // Not every broker knows it at once.
  throw new Refused("create topic", KAFKA.LEADER_NOT_AVAILABLE);
}

/** The topic's settings, as the brokers have them now. Errors: Unanswered, Refused. */
async function configsOf(
  brokers: Brokers,
  topic: string,
): Promise<ReadonlyMap<string, string | null | undefined>> {
  const asked = { resourceType: TOPIC_RESOURCE, resourceName: topic, configurationKeys: null } as const;
  const response = await brokers.call("any", "control", describeConfigsV4.api, [[asked], false, false]);
  const result = response.results[0];
  checkCode("describe configs", result?.errorCode ?? KAFKA.UNKNOWN_TOPIC_OR_PARTITION);
  return new Map(result!.configs.map(({ name, value }) => [name, value]));
}

/** Errors: TRB-CONFIG unless what is acknowledged survives the loss of a broker's disk. Resolves to max.message.bytes. */
async function check(brokers: Brokers, settings: TopicSettings, state: TopicState): Promise<number> {
  const configs = await configsOf(brokers, settings.topic);
  const wrong: string[] = [];
  const expect = (holds: boolean, what: string, expected: string, found: string | null | undefined) => {
    if (!holds) wrong.push(`${what}: expected ${expected}, found ${found}`);
  };
  const policy = configs.get("cleanup.policy");
  // A compacted topic forgets events that nobody has landed.
  expect(policy === "delete", "cleanup.policy", "delete", policy);
  const largest = Number(configs.get("max.message.bytes"));
  expect(
    largest >= settings.maxEventBytes,
    "max.message.bytes",
    `at least ${settings.maxEventBytes}, the largest event`,
    configs.get("max.message.bytes"),
  );
  if (!settings.allowFewReplicas) {
    const replicas = Math.min(...state.replicas);
    expect(replicas >= 3, "replication factor", "at least 3", String(replicas));
    const insync = configs.get("min.insync.replicas");
    expect(Number(insync) >= 2, "min.insync.replicas", "at least 2", insync);
    const unclean = configs.get("unclean.leader.election.enable");
    expect(unclean === "false", "unclean.leader.election.enable", "false", unclean);
  }
  if (wrong.length > 0) {
    throw new TributaryError(
      "TRB-CONFIG",
      `topic ${settings.topic}: ${wrong.join("; ")}` +
        (settings.allowFewReplicas
          ? ""
          : " (stream.kafka.allowFewReplicas lifts what is said of replicas, for development)"),
    );
  }
  return largest;
}

const PASSING: ReadonlySet<number> = new Set<number>([
  KAFKA.LEADER_NOT_AVAILABLE,
  KAFKA.NOT_LEADER_OR_FOLLOWER,
  KAFKA.FENCED_LEADER_EPOCH,
  KAFKA.UNKNOWN_LEADER_EPOCH,
  KAFKA.OFFSET_NOT_AVAILABLE,
  KAFKA.UNSTABLE_OFFSET_COMMIT,
  KAFKA.UNKNOWN_TOPIC_OR_PARTITION,
  KAFKA.REQUEST_TIMED_OUT,
  KAFKA.NOT_CONTROLLER,
  KAFKA.COORDINATOR_NOT_AVAILABLE,
  KAFKA.COORDINATOR_LOAD_IN_PROGRESS,
  KAFKA.NOT_COORDINATOR,
]);
