import type { ProtoRegistry } from "../contracts/registry.js";
import type { Model } from "./project.js";
import { SPARK_DECODED, SPARK_MESSAGE, SPARK_OPTIONS, sparkPayload } from "./spark-payload.js";

/** Where the project's macros find it, below the transforms folder. */
export const SPARK_MACRO = "macros/tributary_payloads.sql";

/**
 * The macro that transforms/macros/source.sql asks how to decode payloads: by entity type, for those that models read
 * and descriptors know.
 */
export function sparkMacro(registry: ProtoRegistry, models: readonly Model[]): string {
  const types = [...new Set(models.map(({ entityType }) => entityType))].sort();
  const entries = types.flatMap((name) => {
    const type = registry.entityType(name);
    if (type === undefined) return [];
    const { descriptors, payload } = sparkPayload(type);
    const entry = {
      message: SPARK_MESSAGE,
      decoded: SPARK_DECODED,
      options: SPARK_OPTIONS,
      descriptors: Buffer.from(descriptors).toString("hex"),
      payload: payload("decoded"),
    };
    return [`  ${JSON.stringify(name)}: ${JSON.stringify(entry)}`];
  });
  return [
    "{# Written by `tributary models spark`; to be written again when a .proto has changed. #}",
    "{% macro tributary_payloads() %}{{ return({",
    entries.join(",\n"),
    "}) }}{% endmacro %}",
    "",
  ].join("\n");
}
