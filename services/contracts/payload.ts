import protobuf from "protobufjs";
import * as wire from "./wire.js";

/** Deeper nesting is refused, as most decoders do. */
const MAX_DEPTH = 100;

/** What a field holds on the wire; 0 is a field that the message does not have. */
const UNKNOWN = 0;
const VARINT = 1;
const FIXED64 = 2;
const FIXED32 = 3;
const BYTES = 4;
const STRING = 5;
const MESSAGE = 6;
/** Added to the kinds of repeated fields that may come packed. */
const PACKABLE = 8;

const SCALAR_KINDS: Readonly<Record<string, number>> = {
  double: FIXED64,
  float: FIXED32,
  int32: VARINT,
  int64: VARINT,
  uint32: VARINT,
  uint64: VARINT,
  sint32: VARINT,
  sint64: VARINT,
  fixed32: FIXED32,
  fixed64: FIXED64,
  sfixed32: FIXED32,
  sfixed64: FIXED64,
  bool: VARINT,
  string: STRING,
  bytes: BYTES,
};

/** Fields up to this number lie in arrays; the few beyond it in a map. */
const DENSE_FIELDS = 1024;

/** One message type (or map entry) made ready for checking. */
interface Plan {
  readonly kinds: Uint8Array;
  readonly children: (Plan | undefined)[];
  readonly sparse: Map<number, { readonly kind: number; readonly child: Plan | undefined }>;
  readonly timestamp: boolean;
}

/**
 * Tells whether bytes decode as a message of one type, without building it: wire types fit their fields, lengths stay
 * in bounds, strings are UTF-8, nested messages and map entries likewise, timestamps lie in years 1 to 9999.
 * Unknown fields are skipped; groups are refused. Repeated numbers may be packed or not, whatever the file says.
 */
export class PayloadChecker {
  private readonly plan: Plan;

  /** Compiles the type; make one per type and keep it. */
  constructor(type: protobuf.Type) {
    this.plan = planOf(type, new Map());
  }

  /** Whether bytes[start, end) are such a message. */
  check(bytes: Uint8Array, start: number, end: number): boolean {
    return check(this.plan, bytes, start, end, 1);
  }
}

function planOf(type: protobuf.Type, known: Map<protobuf.Type, Plan>): Plan {
  const done = known.get(type);
  if (done) return done;
  const plan = emptyPlan(type.fieldsArray, type.fullName === ".google.protobuf.Timestamp");
  known.set(type, plan);
  for (const field of type.fieldsArray) {
    field.resolve();
    if (field instanceof protobuf.MapField) set(plan, field.id, MESSAGE, entryPlan(field, known));
    else set(plan, field.id, kindOf(field), childOf(field, known));
  }
  return plan;
}

function entryPlan(map: protobuf.MapField, known: Map<protobuf.Type, Plan>): Plan {
  const plan = emptyPlan([{ id: 1 }, { id: 2 }], false);
  set(plan, 1, SCALAR_KINDS[map.keyType]!, undefined);
  set(plan, 2, valueKind(map), childOf(map, known));
  return plan;
}

function emptyPlan(fields: readonly { readonly id: number }[], timestamp: boolean): Plan {
  const last = fields.reduce((most, field) => (field.id > DENSE_FIELDS ? most : Math.max(most, field.id)), 0);
  return {
    kinds: new Uint8Array(last + 1),
    children: new Array<Plan | undefined>(last + 1).fill(undefined),
    sparse: new Map(),
    timestamp,
  };
}

function set(plan: Plan, id: number, kind: number, child: Plan | undefined): void {
  if (id < plan.kinds.length) {
    plan.kinds[id] = kind;
    plan.children[id] = child;
  } else plan.sparse.set(id, { kind, child });
}

const childOf = (field: protobuf.FieldBase, known: Map<protobuf.Type, Plan>): Plan | undefined =>
  field.resolvedType instanceof protobuf.Type ? planOf(field.resolvedType, known) : undefined;

function kindOf(field: protobuf.FieldBase): number {
  const kind = valueKind(field);
  return field.repeated && kind <= FIXED32 ? kind + PACKABLE : kind;
}

function valueKind(field: protobuf.FieldBase): number {
  if (field.resolvedType instanceof protobuf.Type) return MESSAGE;
  return field.resolvedType instanceof protobuf.Enum ? VARINT : SCALAR_KINDS[field.type]!;
}

function check(plan: Plan, bytes: Uint8Array, start: number, end: number, depth: number): boolean {
  if (depth > MAX_DEPTH) return false;
  if (plan.timestamp) return isTimestamp(bytes, start, end);
  const { kinds, children } = plan;
  let pos = start;
  while (pos < end) {
    let tag = bytes[pos]!;
    if (tag < 0x80 && tag >= 8) pos++;
    else {
      pos = wire.readTag(bytes, pos, end);
      if (pos < 0) return false;
      tag = wire.low;
    }
    const field = tag >>> 3;
    const wireType = tag & 7;
    let kind = UNKNOWN;
    let child: Plan | undefined;
    if (field < kinds.length) {
      kind = kinds[field]!;
      if (kind === MESSAGE) child = children[field];
    } else if (plan.sparse.size > 0) {
      const found = plan.sparse.get(field);
      kind = found?.kind ?? UNKNOWN;
      child = found?.child;
    }
    if (wireType === wire.LENGTH_DELIMITED) {
      // Most lengths fit one byte.
      let length = pos < end ? bytes[pos]! : 0x80;
      if (length < 0x80) pos++;
      else {
        pos = wire.readLength(bytes, pos, end);
        if (pos < 0) return false;
        length = wire.low;
      }
      const next = pos + length;
      if (next > end) return false;
      if (kind === STRING) {
        if (!wire.isUtf8(bytes, pos, next)) return false;
      } else if (kind === MESSAGE) {
        if (!check(child!, bytes, pos, next, depth + 1)) return false;
      } else if (kind >= PACKABLE) {
        if (!isPacked(kind - PACKABLE, bytes, pos, next)) return false;
      } else if (kind !== BYTES && kind !== UNKNOWN) return false;
      pos = next;
    } else {
      const scalar = kind & ~PACKABLE;
      if (scalar !== UNKNOWN && scalar !== kindOnWire(wireType)) return false;
      pos = wire.skipValue(bytes, pos, end, wireType);
      if (pos < 0) return false;
    }
  }
  return true;
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
