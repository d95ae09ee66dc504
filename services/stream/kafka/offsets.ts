import {
  findCoordinatorV4,
  listGroupsV4,
  listOffsetsV7,
  offsetCommitV8,
  offsetFetchV8,
} from "@platformatic/kafka";
import type { Checkpoint } from "../change-stream.js";
import { checkConsumerName, isConsumerName } from "../consumer-name.js";
import { formatPosition, parsePosition } from "../positions.js";
import type { Brokers } from "./brokers.js";
import { checkCode, KAFKA, Refused } from "./failures.js";
import type { Topic } from "./topic.js";

const LATEST = -1n;
const EARLIEST = -2n;
const READ_COMMITTED = 1;
const GROUP_COORDINATOR = 0;
/** We are no broker. */
const NO_REPLICA = -1;

/** A position is a record's offset: of all one length, so that positions order as strings. */
export const positionAt = formatPosition;
export const offsetAt = parsePosition;

export const partitionName = (index: number): string => String(index);
export const namesOf = (partitions: number): string[] =>
  Array.from({ length: partitions }, (_, i) => partitionName(i));

/** The consumer group of a named consumer of a topic: one for each topic, so that a domain's members are its own. */
export function groupOf(topic: string, consumer: string): string {
  checkConsumerName(consumer);
  return `${topic}.${consumer}`;
}

/** First offset, or the one after the last stable one, of each partition. Errors: Unanswered, Refused. */
export async function listOffsets(topic: Topic, which: "earliest" | "latest"): Promise<Map<number, number>> {
  const byLeader = new Map<number, number[]>();
  for (const [partition, leader] of topic.state.leaders.entries()) {
    if (leader < 0) throw new Refused("list offsets", KAFKA.LEADER_NOT_AVAILABLE);
    byLeader.set(leader, [...(byLeader.get(leader) ?? []), partition]);
  }
  const offsets = new Map<number, number>();
  const timestamp = which === "latest" ? LATEST : EARLIEST;
  await Promise.all(
    [...byLeader].map(async ([leader, partitions]) => {
      const asked = partitions.map((partitionIndex) => ({
        partitionIndex,
        currentLeaderEpoch: -1,
        timestamp,
      }));
      const topics = [{ name: topic.name, partitions: asked }];
      const response = await topic.brokers.call(leader, "control", listOffsetsV7.api, [
        NO_REPLICA,
        READ_COMMITTED,
        topics,
      ]);
      for (const { partitionIndex, errorCode, offset } of response.topics[0]?.partitions ?? []) {
        checkCode("list offsets", errorCode);
        offsets.set(partitionIndex, Number(offset));
      }
    }),
  );
  return offsets;
}

/** The broker that keeps the group's offsets and members. Errors: Unanswered, Refused. */
export async function coordinatorOf(brokers: Brokers, group: string): Promise<number> {
  const response = await brokers.call("any", "control", findCoordinatorV4.api, [GROUP_COORDINATOR, [group]]);
  const found = response.coordinators[0];
  checkCode("find coordinator", found?.errorCode ?? KAFKA.COORDINATOR_NOT_AVAILABLE);
  return found!.nodeId;
}

/**
 * Offsets after what the group is done with; without the partitions of which it has committed nothing. What was
 * committed for a topic of that name that is no more does not count. Errors: Unanswered, Refused.
 */
export async function committedOffsets(
  topic: Topic,
  group: string,
  coordinator?: number,
): Promise<Map<number, number>> {
  const node = coordinator ?? (await coordinatorOf(topic.brokers, group));
  const partitionIndexes = topic.state.leaders.map((_, partition) => partition);
  const asked = { groupId: group, memberEpoch: -1, topics: [{ name: topic.name, partitionIndexes }] };
  const response = await topic.brokers.call(node, "control", offsetFetchV8.api, [[asked], true]);
  const found = response.groups[0];
  checkCode("fetch offsets", found?.errorCode ?? KAFKA.COORDINATOR_NOT_AVAILABLE);
  const offsets = new Map<number, number>();
  for (const { partitionIndex, errorCode, committedOffset, metadata } of found!.topics[0]?.partitions ?? []) {
    checkCode("fetch offsets", errorCode);
    const ofThisTopic = metadata === null || metadata === "" || metadata === topic.state.id;
    if (committedOffset >= 0n && ofThisTopic) offsets.set(partitionIndex, Number(committedOffset));
  }
  return offsets;
}

export interface Membership {
  readonly group: string;
  readonly coordinator: number;
  readonly memberId: string;
  readonly generation: number;
}

/** Durable when resolved. Errors: Unanswered, Refused. */
export async function commitOffsets(
  topic: Topic,
  { group, coordinator, memberId, generation }: Membership,
  offsets: ReadonlyMap<number, number>,
): Promise<void> {
  const partitions = [...offsets].map(([partitionIndex, offset]) => ({
    partitionIndex,
    committedOffset: BigInt(offset),
    committedLeaderEpoch: -1,
    committedMetadata: topic.state.id,
  }));
  const topics = [{ name: topic.name, partitions }];
  const args: Parameters<typeof offsetCommitV8.createRequest> = [group, generation, memberId, null, topics];
  const response = await topic.brokers.call(coordinator, "control", offsetCommitV8.api, args);
  for (const { errorCode } of response.topics[0]?.partitions ?? []) checkCode("commit offsets", errorCode);
}

/** Groups that read the topic, as `groupOf` names them. Errors: Unanswered, Refused. */
export async function groupsOf(topic: Topic): Promise<string[]> {
  const found = await Promise.all(
    topic.brokers.known.map(async (node) => {
      const response = await topic.brokers.call(node, "control", listGroupsV4.api, [[], []]);
      checkCode("list groups", response.errorCode);
      return response.groups.map(({ groupId }) => groupId);
    }),
  );
  const rest = (group: string) => group.slice(topic.name.length + 1);
  return [...new Set(found.flat())].filter(
    (group) => group.startsWith(`${topic.name}.`) && isConsumerName(rest(group)),
  );
}

/** Offsets after the last done → the checkpoint they make. */
export function checkpointOf(offsets: ReadonlyMap<number, number>): Checkpoint {
  const checkpoint = new Map<string, string>();
  for (const [partition, offset] of [...offsets].sort(([a], [b]) => a - b)) {
    if (offset > 0) checkpoint.set(partitionName(partition), positionAt(offset - 1));
  }
  return checkpoint;
}
