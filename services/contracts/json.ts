import {
  type DescField,
  type DescMessage,
  fromJson,
  type JsonObject,
  type JsonValue,
  ScalarType,
  toBinary,
} from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence as Presence } from "@bufbuild/protobuf/wkt";
import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { describe } from "./event-messages.js";
import { exactNumbers } from "./json-numbers.js";
import { GivenTwice, parseJson } from "./json-text.js";
import type { ProtoRegistry } from "./registry.js";

/** One event as wire bytes, or why it is none. Messages name fields, never values. */
export type JsonEvent = Buffer | { readonly code: Code; readonly message: string };

/** Codes of the envelope's fields, by either of their JSON names; what is not listed is TRB-EVENT-MALFORMED. */
const FIELD_CODES: Readonly<Record<string, Code>> = {
  tenant_id: "TRB-EVENT-TENANT",
  entity_type: "TRB-EVENT-ENTITY-TYPE",
  entity_id: "TRB-EVENT-ENTITY-ID",
  operation: "TRB-EVENT-OPERATION",
  version: "TRB-EVENT-VERSION",
  occurred_at: "TRB-EVENT-TIME",
  payload: "TRB-EVENT-PAYLOAD-DECODE",
  payload_compression: "TRB-EVENT-COMPRESSION",
};

/**
 * proto3 JSON to wire bytes, by @bufbuild/protobuf and the same descriptors as the binary path. Integers may be
 * strings or numbers, also "1.0" and "1e2", and are exact however many digits they have. Unknown fields and keys given
 * twice are refused.
 */
export class JsonEvents {
  private readonly registry: ProtoRegistry;
  private readonly event: DescMessage;

  constructor(registry: ProtoRegistry) {
    const event = registry.types.getMessage("tributary.v1.ChangeEvent");
    if (!event) throw new TributaryError("TRB-CONFIG", "protoDirs: tributary.v1.ChangeEvent is missing");
    this.registry = registry;
    this.event = event;
  }

  /** One event of a JSON body; undefined when the text is no JSON at all, and so the body is none. */
  convertText(text: Uint8Array): JsonEvent | undefined {
    const value = parseJson(text);
    if (value instanceof GivenTwice) return malformed(`${pathOf(value)}: given twice`);
    return value === undefined ? undefined : this.convert(value);
  }

  /** One line of NDJSON, without its line break. */
  convertLine(line: Uint8Array): JsonEvent {
    return this.convertText(line) ?? malformed("line: expected one event as UTF-8 JSON");
  }

  /** One event as parsed JSON. What is only wrong in meaning (an empty tenant, say) is left to the envelope's reader. */
  convert(value: unknown): JsonEvent {
    if (!isObject(value)) return malformed("event: expected a JSON object");
    const early = this.checkPayloadType(value);
    if (early) return early;
    try {
      return this.encode(value);
    } catch {
      return this.explain(value);
    }
  }

  private encode(value: JsonObject): Buffer {
    const exact = exactNumbers(this.event, value, this.registry.types);
    const message = fromJson(this.event, exact, { registry: this.registry.types });
    return Buffer.from(toBinary(this.event, message));
  }

  /** What is told apart by code before the library meets it. */
  private checkPayloadType(event: JsonObject): JsonEvent | undefined {
    const payload = event.payload;
    if (payload === undefined || payload === null) return undefined;
    const compression = event.payloadCompression ?? event.payload_compression ?? 0;
    if (compression !== 0 && compression !== "COMPRESSION_UNSPECIFIED") {
      return rejected(
        "TRB-EVENT-COMPRESSION",
        "payload_compression: expected none, for a payload written in JSON",
      );
    }
    const entityType = event.entityType ?? event.entity_type;
    if (typeof entityType !== "string" || !this.registry.entityType(entityType)) {
      return rejected("TRB-EVENT-ENTITY-TYPE");
    }
    const type = isObject(payload) ? payload["@type"] : undefined;
    if (typeof type !== "string" || type.slice(type.lastIndexOf("/") + 1) !== entityType) {
      return rejected(
        "TRB-EVENT-PAYLOAD-TYPE",
        "payload: expected an object whose @type names the entity_type",
      );
    }
    return undefined;
  }

  /** The library's own messages quote values; so the field at fault is found by trying each alone. */
  private explain(event: JsonObject): JsonEvent {
    for (const [key, value] of Object.entries(event)) {
      const field = fieldOf(this.event, key);
      if (!field) return malformed(`event: field "${name(key)}" is not known`);
      if (this.reads(this.event, key, value)) continue;
      const code = FIELD_CODES[field.name];
      if (field.name === "payload" && isObject(value)) {
        return rejected("TRB-EVENT-PAYLOAD-DECODE", this.explainPayload(value));
      }
      return code ? rejected(code) : malformed(`${field.name}: expected ${expectation(field)}`);
    }
    // Each field reads alone, so two of them exclude each other, or are one under its two names.
    const both = underBothNames(this.event, event);
    if (both !== undefined) return malformed(`${both}: given under both of its names`);
    return rejected("TRB-EVENT-CONTENT");
  }

  private explainPayload(payload: JsonObject): string {
    const type = String(payload["@type"]);
    const desc = this.registry.types.getMessage(type.slice(type.lastIndexOf("/") + 1));
    for (const [key, value] of Object.entries(payload)) {
      if (key === "@type" || !desc) continue;
      const field = fieldOf(desc, key);
      if (!field) return `payload: field "${name(key)}" is not known`;
      if (!this.reads(desc, key, value)) return `payload.${field.name}: expected ${expectation(field)}`;
    }
    const both = desc && underBothNames(desc, payload);
    if (both !== undefined) return `payload.${both}: given under both of its names`;
    const missing = desc?.fields.find(
      (field) =>
        field.presence === Presence.LEGACY_REQUIRED && !(field.jsonName in payload || field.name in payload),
    );
    if (missing !== undefined)
      return `payload.${missing.name}: expected ${expectation(missing)}, which is required`;
    return "payload: expected fields that do not exclude each other";
  }

  private reads(desc: DescMessage, key: string, value: JsonValue): boolean {
    try {
      const part = exactNumbers(desc, { [key]: value }, this.registry.types);
      fromJson(desc, part, { registry: this.registry.types });
      return true;
    } catch {
      return false;
    }
  }
}

const fieldOf = (desc: DescMessage, key: string): DescField | undefined =>
  desc.fields.find((field) => field.jsonName === key || field.name === key);

function underBothNames(desc: DescMessage, value: JsonObject): string | undefined {
  const given = new Set<string>();
  for (const key of Object.keys(value)) {
    const field = fieldOf(desc, key);
    if (field === undefined) continue;
    if (given.has(field.name)) return field.name;
    given.add(field.name);
  }
  return undefined;
}

/** How many keys of a path are told: enough to find the place, however deep the sender went. */
const PATH_KEYS = 8;

/** "payload.inner.text" */
function pathOf({ path }: GivenTwice): string {
  const keys = path.map((key) => name(String(key)));
  return (keys.length > PATH_KEYS ? [...keys.slice(0, PATH_KEYS - 1), "…", keys.at(-1)] : keys).join(".");
}

/** What a field takes, in the words of its .proto file. */
export function expectation(field: DescField): string {
  const type = field.message?.typeName ?? field.enum?.typeName ?? scalarName(field.scalar);
  if (field.fieldKind === "list") return `an array of ${type}`;
  return field.fieldKind === "map" ? `an object of ${type}` : type;
}

const scalarName = (scalar: ScalarType | undefined): string =>
  scalar === undefined ? "a value" : ScalarType[scalar].toLowerCase();

/** Keys are the sender's own, but not ours to repeat at any length. */
export const name = (key: string): string => key.replace(/[^\w.@-]/g, "?").slice(0, 64);

const isObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const rejected = (code: Code, message = describe(code)) => ({ code, message });
const malformed = (message: string) => rejected("TRB-EVENT-MALFORMED", message);
