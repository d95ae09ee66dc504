import { type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence as Presence } from "@bufbuild/protobuf/wkt";
import * as wire from "./wire.js";

/** What a field holds on the wire; 0 is a field that the message does not have. */
const UNKNOWN = 0;
const VARINT = 1;
const FIXED64 = 2;
const FIXED32 = 3;
const BYTES = 4;
const STRING = 5;
const MESSAGE = 6;
/** A message between a start and an end tag (proto2 groups, delimited messages of editions). */
const GROUP = 7;
/** Added to the kinds of repeated fields that may come packed. */
const PACKABLE = 8;

const SCALAR_KINDS: Readonly<Record<ScalarType, number>> = {
  [ScalarType.DOUBLE]: FIXED64,
  [ScalarType.FLOAT]: FIXED32,
  [ScalarType.INT32]: VARINT,
  [ScalarType.INT64]: VARINT,
  [ScalarType.UINT32]: VARINT,
  [ScalarType.UINT64]: VARINT,
  [ScalarType.SINT32]: VARINT,
  [ScalarType.SINT64]: VARINT,
  [ScalarType.FIXED32]: FIXED32,
  [ScalarType.FIXED64]: FIXED64,
  [ScalarType.SFIXED32]: FIXED32,
  [ScalarType.SFIXED64]: FIXED64,
  [ScalarType.BOOL]: VARINT,
  [ScalarType.STRING]: STRING,
  [ScalarType.BYTES]: BYTES,
};

/** Fields up to this number lie in arrays; the few beyond it in a map. */
const DENSE_FIELDS = 1024;

/** One message type (or map entry) made ready for checking. */
interface Plan {
  readonly kinds: Uint8Array;
  readonly children: (Plan | undefined)[];
  readonly sparse: Map<number, { readonly kind: number; readonly child: Plan | undefined }>;
  readonly timestamp: boolean;
  /** Numbers of the fields that must be there (proto2 `required`). */
  readonly required: readonly number[];
}

/**
 * Tells whether bytes decode as a message of one type, without building it: wire types fit their fields, lengths stay
 * in bounds, groups end, strings that are to be UTF-8 are, nested messages and map entries likewise, required fields
 * are there, timestamps lie in years 1 to 9999. Unknown fields are skipped. Repeated numbers may be packed or not,
 * whatever the file says.
 */
export class PayloadChecker {
  private readonly plan: Plan;

  /** Compiles the type; make one per type and keep it. */
  constructor(type: DescMessage) {
    this.plan = planOf(type, new Map());
  }

  /** Whether bytes[start, end) are such a message. */
  check(bytes: Uint8Array, start: number, end: number): boolean {
    return check(this.plan, bytes, start, end, 1, 0) === end;
  }
}

function planOf(type: DescMessage, known: Map<DescMessage, Plan>): Plan {
  const done = known.get(type);
  if (done) return done;
  const required = type.fields.filter((field) => field.presence === Presence.LEGACY_REQUIRED);
  const plan = emptyPlan(type.fields, {
    timestamp: type.typeName === "google.protobuf.Timestamp",
    required: required.map((field) => field.number),
  });
  known.set(type, plan);
  for (const field of type.fields) {
    if (field.fieldKind === "map") set(plan, field.number, MESSAGE, entryPlan(field, known));
    else set(plan, field.number, kindOf(field), childOf(field, known));
  }
  return plan;
}

function entryPlan(map: DescField & { fieldKind: "map" }, known: Map<DescMessage, Plan>): Plan {
  const plan = emptyPlan([{ number: 1 }, { number: 2 }], { timestamp: false, required: [] });
  set(plan, 1, scalarKind(map.mapKey, map), undefined);
  set(plan, 2, valueKind(map), childOf(map, known));
  return plan;
}

function emptyPlan(
  fields: readonly { readonly number: number }[],
  rest: Pick<Plan, "timestamp" | "required">,
): Plan {
  const last = fields.reduce(
    (most, { number }) => (number > DENSE_FIELDS ? most : Math.max(most, number)),
    0,
  );
  return {
    kinds: new Uint8Array(last + 1),
    children: new Array<Plan | undefined>(last + 1).fill(undefined),
    sparse: new Map(),
    ...rest,
  };
}

function set(plan: Plan, id: number, kind: number, child: Plan | undefined): void {
  if (id < plan.kinds.length) {
    plan.kinds[id] = kind;
    plan.children[id] = child;
  } else plan.sparse.set(id, { kind, child });
}

const childOf = (field: DescField, known: Map<DescMessage, Plan>): Plan | undefined =>
  field.message === undefined ? undefined : planOf(field.message, known);

function kindOf(field: DescField): number {
  const kind = valueKind(field);
  return field.fieldKind === "list" && kind <= FIXED32 ? kind + PACKABLE : kind;
}

function valueKind(field: DescField): number {
  if (field.message !== undefined) return field.delimitedEncoding ? GROUP : MESSAGE;
  return field.scalar === undefined ? VARINT : scalarKind(field.scalar, field);
}

function scalarKind(scalar: ScalarType, field: DescField): number {
  const kind = SCALAR_KINDS[scalar];
  return kind === STRING && !field.utf8Validation ? BYTES : kind;
}

/** The position behind the message: `end`, or behind the end tag of `group`; -1 when it is none. */
function check(
  plan: Plan,
  bytes: Uint8Array,
  start: number,
  end: number,
  depth: number,
  group: number,
): number {
  if (depth > wire.MAX_DEPTH) return -1;
  if (plan.timestamp) {
    const after = group === 0 ? end : wire.skipGroup(bytes, start, end, group, depth);
    return after >= 0 && isTimestamp(bytes, start, group === 0 ? end : wire.groupEnd) ? after : -1;
  }
  const { kinds, children, required } = plan;
  const missing = required.length === 0 ? undefined : new Set(required);
  let pos = start;
  while (pos < end) {
    let tag = bytes[pos]!;
    if (tag < 0x80 && tag >= 8) pos++;
    else {
      pos = wire.readTag(bytes, pos, end);
      if (pos < 0) return -1;
      tag = wire.low;
    }
    const field = tag >>> 3;
    const wireType = tag & 7;
    let kind = UNKNOWN;
    let child: Plan | undefined;
    if (field < kinds.length) {
      kind = kinds[field]!;
      if (kind === MESSAGE || kind === GROUP) child = children[field];
    } else if (plan.sparse.size > 0) {
      const found = plan.sparse.get(field);
      kind = found?.kind ?? UNKNOWN;
      child = found?.child;
    }
    missing?.delete(field);
    if (wireType === wire.LENGTH_DELIMITED) {
      // Most lengths fit one byte.
      let length = pos < end ? bytes[pos]! : 0x80;
      if (length < 0x80) pos++;
      else {
        pos = wire.readLength(bytes, pos, end);
        if (pos < 0) return -1;
        length = wire.low;
      }
      const next = pos + length;
      if (next > end) return -1;
      if (kind === STRING) {
        if (!wire.isUtf8(bytes, pos, next)) return -1;
      } else if (kind === MESSAGE) {
        if (check(child!, bytes, pos, next, depth + 1, 0) < 0) return -1;
      } else if (kind >= PACKABLE) {
        if (!isPacked(kind - PACKABLE, bytes, pos, next)) return -1;
      } else if (kind !== BYTES && kind !== UNKNOWN) return -1;
      pos = next;
    } else if (wireType === wire.GROUP) {
      if (kind === GROUP) pos = check(child!, bytes, pos, end, depth + 1, field);
      else if (kind === UNKNOWN) pos = wire.skipGroup(bytes, pos, end, field, depth);
      else return -1;
      if (pos < 0) return -1;
    } else if (wireType === wire.END_GROUP) {
      return group !== 0 && field === group && !missing?.size ? pos : -1;
    } else {
      const scalar = kind & ~PACKABLE;
      if (scalar !== UNKNOWN && scalar !== kindOnWire(wireType)) return -1;
      pos = wire.skipValue(bytes, pos, end, wireType);
      if (pos < 0) return -1;
    }
  }
  return group === 0 && !missing?.size ? end : -1;
}

function kindOnWire(wireType: number): number {
  if (wireType === wire.VARINT) return VARINT;
  return wireType === wire.FIXED64 ? FIXED64 : wireType === wire.FIXED32 ? FIXED32 : UNKNOWN;
}

function isPacked(kind: number, bytes: Uint8Array, start: number, end: number): boolean {
  if (kind !== VARINT) return (end - start) % (kind === FIXED64 ? 8 : 4) === 0;
  let pos = start;
  while (pos >= 0 && pos < end) pos = wire.readVarint(bytes, pos, end);
  return pos === end;
}

/** A Timestamp in range: beyond it, neither JSON nor a table's column could hold the value. */
function isTimestamp(bytes: Uint8Array, start: number, end: number): boolean {
  let seconds = 0;
  let nanos = 0;
  for (let pos = start; pos < end; ) {
    pos = wire.readTag(bytes, pos, end);
    if (pos < 0) return false;
    const tag = wire.low;
    pos = wire.skipValue(bytes, pos, end, tag & 7);
    if (pos < 0) return false;
    if (tag === 8) seconds = wire.signed64();
    else if (tag === 16) nanos = wire.low | 0;
    else if (tag < 24) return false;
  }
  return wire.isInstant(seconds, nanos);
}
