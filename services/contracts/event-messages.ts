import type { Code } from "../base/codes.js";

/** What a rejected producer reads beside the code: the field and what was expected, never a value. */
export function describe(code: Code): string {
  return MESSAGES[code] ?? "the event was not accepted";
}

const MESSAGES: Partial<Record<Code, string>> = {
  "TRB-EVENT-MALFORMED":
    "event: expected a well-formed tributary.v1.ChangeEvent, with UTF-8 strings and no message field given twice",
  "TRB-EVENT-TENANT": "tenant_id: expected [A-Za-z0-9][A-Za-z0-9._:-]{0,127}",
  "TRB-EVENT-ENTITY-TYPE": "entity_type: expected the full name of a deployed payload message",
  "TRB-EVENT-ENTITY-ID": "entity_id: expected 1 to 1024 bytes of UTF-8",
  "TRB-EVENT-OPERATION": "operation: expected OPERATION_CREATED, OPERATION_UPDATED or OPERATION_DELETED",
  "TRB-EVENT-VERSION": "version: expected 1 to 2^63-1",
  "TRB-EVENT-TIME": "occurred_at: expected a timestamp in years 1 to 9999 with nanos from 0 to 999999999",
  "TRB-EVENT-CONTENT":
    "content: expected exactly one of payload and payload_reference, or neither for OPERATION_DELETED",
  "TRB-EVENT-PAYLOAD-TYPE": "payload: expected a type URL that ends in /<entity_type>",
  "TRB-EVENT-PAYLOAD-DECODE": "payload: expected bytes that decode as the message of entity_type",
  "TRB-EVENT-PAYLOAD-SIZE": "payload: expected fewer bytes, packed and unpacked",
  "TRB-EVENT-COMPRESSION":
    "payload_compression: expected COMPRESSION_GZIP, COMPRESSION_ZSTD or none, and bytes packed that way",
  "TRB-EVENT-REFERENCE":
    "payload_reference: expected uri offload/<tenant_id>/<sha256 hex>, the 32 bytes of sha256, a type_url that ends in /<entity_type> and size_bytes of at least 1",
  "TRB-EVENT-PAYLOAD-MISSING":
    "payload_reference: expected an object at uri that has size_bytes; upload it, then publish the event again",
  "TRB-LAKE-CLOSED":
    "payload: expected one that travels in its event while the lake moves; send this event again later",
  "TRB-BUS-BUSY":
    "entity_type: expected one whose stream takes events now; this event was not accepted: send it again later",
  "TRB-BUS-STREAM-DOWN":
    "entity_type: expected one whose stream answers; whether this event was stored is not known: send it again",
  "TRB-BUS-TABLE-HELD": "entity_type: expected one whose events can land; send this event again later",
  "TRB-AUTH-TENANT": "tenant_id: expected a tenant that the token grants",
  "TRB-AUTH-ENTITY-TYPE": "entity_type: expected one that the token grants",
};
