import { Reader, Writer } from "@platformatic/kafka";

/**
 * Who of a group reads which partitions, in the format of the consumer protocol (ConsumerProtocolSubscription and
 * -Assignment, version 1), so that the usual tools can show it.
 *
 * Each member gets neighbouring partitions: files of tables belong to ranges of slots, and so do partitions. Members
 * keep their order by what they have, so that little moves. A partition that another still has is given to nobody until
 * that one has let go of it and asks again; all else is read on without a pause.
 */
export const ASSIGNOR = "tributary-ranges";

export interface Subscription {
  readonly topics: readonly string[];
  /** What the member reads now. */
  readonly owned: readonly number[];
  /** How many partitions the member has seen the topic to have: when that changes, the group gathers anew. */
  readonly partitions: number;
}

const VERSION = 1;

export function encodeSubscription({ topics, owned, partitions }: Subscription): Buffer {
  const seen = Buffer.alloc(4);
  seen.writeInt32BE(partitions);
  const writer = Writer.create()
    .appendInt16(VERSION)
    .appendArray([...topics], (w, topic) => w.appendString(topic, false), false, false)
    .appendBytes(seen, false)
    .appendArray(
      [...topics],
      (w, topic) => {
        w.appendString(topic, false).appendArray([...owned], (v, p) => v.appendInt32(p), false, false);
      },
      false,
      false,
    );
  return writer.buffer;
}

export function decodeSubscription(bytes: Buffer): Subscription {
  const reader = Reader.from(bytes);
  const version = reader.readInt16();
  const topics = reader.readArray((r) => r.readString(false), false, false);
  const seen = reader.readNullableBytes(false);
  const owned =
    version < VERSION
      ? []
      : reader.readArray(
          (r) => {
            r.readString(false);
            return r.readArray((v) => v.readInt32(), false, false);
          },
          false,
          false,
        );
  return { topics, owned: owned.flat(), partitions: seen?.length === 4 ? seen.readInt32BE() : 0 };
}

export function encodeAssignment(topic: string, partitions: readonly number[]): Buffer {
  return Writer.create()
    .appendInt16(0)
    .appendArray(
      partitions.length === 0 ? [] : [topic],
      (w, name) => {
        w.appendString(name, false).appendArray([...partitions], (v, p) => v.appendInt32(p), false, false);
      },
      false,
      false,
    )
    .appendInt32(-1).buffer;
}

export function decodeAssignment(bytes: Buffer): number[] {
  const reader = Reader.from(bytes);
  // Nothing at all is how a member is told of nothing.
  if (reader.remaining < 6) return [];
  reader.skip(2);
  return reader
    .readArray(
      (r) => {
        r.readString(false);
        return r.readArray((v) => v.readInt32(), false, false);
      },
      false,
      false,
    )
    .flat();
}

export interface Member {
  readonly id: string;
  readonly owned: readonly number[];
}

/** Member → partitions. */
export function assign(members: readonly Member[], partitions: number): Map<string, number[]> {
  const lowest = ({ owned }: Member) => Math.min(...owned, Number.POSITIVE_INFINITY);
  const order = [...members].sort((a, b) => lowest(a) - lowest(b) || (a.id < b.id ? -1 : 1));
  // The first ones have one more, so that those who have some are asked before those who have none: what is settled
  // stays as it is.
  const target = new Map<number, string>();
  const least = Math.floor(partitions / order.length);
  const more = partitions % order.length;
  for (const [m, { id }] of order.entries()) {
    const first = m * least + Math.min(m, more);
    for (let p = first; p < first + least + (m < more ? 1 : 0); p++) target.set(p, id);
  }
  const owners = new Map<number, string[]>();
  for (const { id, owned } of members) {
    for (const p of owned) owners.set(p, [...(owners.get(p) ?? []), id]);
  }
  const assignment = new Map<string, number[]>(members.map(({ id }) => [id, []]));
  for (const [p, id] of target) {
    const others = (owners.get(p) ?? []).filter((owner) => owner !== id);
    if (others.length === 0) assignment.get(id)!.push(p);
  }
  return assignment;
}
