import type { Action, MetaDataAction, ProtocolAction } from "./actions.js";
import { STAMPED } from "./commit-info.js";
import { type ColumnSpec, type DeltaField, schemaString } from "./schema.js";

/** What a table is to be: given by its maker, kept in the log as `protocol` and `metaData`. */
export interface TableSpec {
  readonly columns: readonly ColumnSpec[];
  readonly partitionColumns: readonly string[];
  readonly properties: Readonly<Record<string, string>>;
  readonly protocol: ProtocolAction;
  readonly description?: string;
  /** Columns that it has more than an older make are added to the table; where files lack them they are NULL. */
  readonly grows?: true;
  /** Its rows are nowhere else: where its log is gone while its files are there, it is not begun anew. */
  readonly irreplaceable?: true;
}

/** The protocol and metaData actions that (re)define a table; `id` stays with the table for its life. */
export function definition(spec: TableSpec, id: string): Action[] {
  return [
    { protocol: spec.protocol },
    {
      metaData: {
        id,
        ...(spec.description === undefined ? {} : { description: spec.description }),
        format: { provider: "parquet", options: {} },
        schemaString: schemaString(spec.columns),
        partitionColumns: spec.partitionColumns,
        configuration: spec.properties,
        createdTime: Date.now(),
      },
    },
  ];
}

/** A table as its log has it. */
export interface Defined {
  readonly protocol: ProtocolAction;
  readonly metaData: MetaDataAction;
  /** Some live file has a deletion vector. */
  readonly hasVectors: boolean;
}

/**
 * What brings a table that an older Tributary made to the protocol, properties and nullability of its spec; undefined
 * when nothing is amiss. Columns of others than those that grow, and properties that are not Delta's, stay: they change with the table's rows only.
 */
export function mended(table: Defined, spec: TableSpec): Action[] | undefined {
  const protocol = table.hasVectors ? withVectors(spec.protocol) : spec.protocol;
  const configuration: Record<string, string> = {};
  for (const [name, value] of Object.entries(table.metaData.configuration)) {
    if (!isDelta(name) || STAMPED.includes(name)) configuration[name] = value;
  }
  for (const [name, value] of Object.entries(spec.properties)) if (isDelta(name)) configuration[name] = value;
  const grown = spec.grows ? withColumns(table.metaData.schemaString, spec.columns) : undefined;
  if (grown !== undefined) configuration[GROWN] = "true";
  const metaData: MetaDataAction = {
    ...table.metaData,
    configuration,
    schemaString: withNullability(grown ?? table.metaData.schemaString, spec.columns),
  };
  if (sameProtocol(protocol, table.protocol) && sameMetaData(metaData, table.metaData)) return undefined;
  return [{ protocol }, { metaData }];
}

const isDelta = (property: string): boolean => property.startsWith("delta.");

const VECTORS = "deletionVectors";

/** Property of a table that has got columns in the course of its life: not every file has them all. */
export const GROWN = "tributary.grown";

/** Files keep the vectors they have, so the table keeps asking its readers to know them. */
function withVectors(protocol: ProtocolAction): ProtocolAction {
  if (protocol.readerFeatures?.includes(VECTORS)) return protocol;
  return {
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: [...(protocol.readerFeatures ?? []), VECTORS],
    writerFeatures: [...(protocol.writerFeatures ?? []), VECTORS],
  };
}

/** The schema with the columns it lacks; undefined when it has them all. */
function withColumns(schema: string, columns: readonly ColumnSpec[]): string | undefined {
  const { fields } = JSON.parse(schema) as { fields: DeltaField[] };
  const known = new Set(fields.map(({ name }) => name));
  const more = columns.filter(({ name }) => !known.has(name));
  if (more.length === 0) return undefined;
  const { fields: added } = JSON.parse(schemaString(more)) as { fields: DeltaField[] };
  return JSON.stringify({ type: "struct", fields: [...fields, ...added] });
}

function withNullability(schema: string, columns: readonly ColumnSpec[]): string {
  const { fields } = JSON.parse(schema) as { fields: DeltaField[] };
  const wanted = new Map(columns.map(({ name, nullable }) => [name, nullable]));
  const mended = fields.map((field) => ({ ...field, nullable: wanted.get(field.name) ?? true }));
  return JSON.stringify({ type: "struct", fields: mended });
}

const sorted = (names: readonly string[] = []): string => JSON.stringify([...names].sort());

const sameProtocol = (a: ProtocolAction, b: ProtocolAction): boolean =>
  a.minReaderVersion === b.minReaderVersion &&
  a.minWriterVersion === b.minWriterVersion &&
  sorted(a.readerFeatures) === sorted(b.readerFeatures) &&
  sorted(a.writerFeatures) === sorted(b.writerFeatures);

const entries = (properties: Readonly<Record<string, string>>): string =>
  sorted(Object.entries(properties).map((entry) => JSON.stringify(entry)));

/** Of what `mended` may change. */
const sameMetaData = (a: MetaDataAction, b: MetaDataAction): boolean =>
  entries(a.configuration) === entries(b.configuration) &&
  JSON.stringify(JSON.parse(a.schemaString)) === JSON.stringify(JSON.parse(b.schemaString));
