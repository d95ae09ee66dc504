import type { DuckDBConnection } from "@duckdb/node-api";
import { TributaryError } from "../../base/errors.js";
import { Envelope } from "../../contracts/envelope.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import type { HeldFile } from "../../sources/held-file.js";
import { lend, type ReadLimits } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import { SourceReader, START } from "../../sources/reader.js";
import type { SourceProcess } from "../../sources/source-process.js";
import type { Place } from "../../sources/sources.js";
import { chunkProcess } from "./chunk-processes.js";
import type { ListTypes } from "./chunk-protocol.js";

/**
 * A source of whole events of several types lands type by type: a table's files are as large as they should be, and how
 * far each table is stands in it alone. Every record has one owner among the types: the one it says it is of, or the
 * first one for what is of none.
 */

/** What a job's pass for one type leaves to the others. Plain. */
export interface Leaves {
  readonly types: readonly string[];
  /** What is of none of the types is another's, too. */
  readonly rest: boolean;
}

/** One type's part of a source. Plain JSON. */
export interface EventShare {
  readonly entityType: string;
  /** Numbers of the files, in the manifest, that hold something of it. */
  readonly files: readonly number[];
  readonly leaves: Leaves;
}

/** What a file holds. Plain, as messages between processes are. */
export interface FoundTypes {
  readonly types: readonly string[];
  /** Records of none of the types that are known. */
  readonly rest: boolean;
}

/** Tells which records are a pass's own. */
export class Owner {
  private readonly others: ReadonlySet<string>;
  readonly ownsRest: boolean;

  constructor(
    private readonly entityType: string,
    leaves: Leaves | undefined,
  ) {
    this.others = new Set(leaves?.types);
    this.ownsRest = leaves?.rest !== true;
  }

  /** Of a record as far as it could be read. */
  owns(envelope: Envelope): boolean {
    const type = envelope.entityType();
    return type === this.entityType || (this.ownsRest && !this.others.has(type));
  }
}

/**
 * The parts of a source, in the order of their types: each is read to its end for it. Errors: TRB-BULK-TYPE where
 * nothing is of a type that is known; those of `lend` and SourceProcess.
 */
export async function sharesOf(
  place: Place,
  manifest: Manifest,
  limits: ReadLimits,
  registry: ProtoRegistry,
): Promise<readonly EventShare[]> {
  const byType = new Map<string, number[]>();
  const rest: number[] = [];
  const reader = chunkProcess(limits);
  try {
    for (const file of manifest.files.keys()) {
      const found = await typesIn(reader, place, manifest, file, limits, registry);
      for (const type of found.types) byType.set(type, [...(byType.get(type) ?? []), file]);
      if (found.rest) rest.push(file);
    }
  } finally {
    reader.end();
  }
  const types = [...byType.keys()].sort();
  if (types.length === 0) {
    throw new TributaryError("TRB-BULK-TYPE", "expected events of types that this lake knows, found none");
  }
  return types.map((entityType, at) => {
    const files = new Set([...byType.get(entityType)!, ...(at === 0 ? rest : [])]);
    const others = types.filter((type) => type !== entityType);
    return {
      entityType,
      files: [...files].sort((a, b) => a - b),
      leaves: { types: others, rest: at > 0 },
    };
  });
}

function typesIn(
  reader: SourceProcess,
  place: Place,
  manifest: Manifest,
  file: number,
  limits: ReadLimits,
  registry: ProtoRegistry,
): Promise<FoundTypes> {
  return lend(place, manifest, file, limits, undefined, async (unit) => {
    const request: ListTypes = { type: "types", unit, descriptors: registry.bytes() };
    return (await reader.call(request)) as FoundTypes;
  });
}

/** Where files may be read that strangers wrote. Errors: those of SourceReader. */
export async function findTypes(
  connection: DuckDBConnection,
  file: HeldFile,
  { descriptors }: Pick<ListTypes, "descriptors">,
  getsOn: () => void,
): Promise<FoundTypes> {
  const known = new Set(ProtoRegistry.of(descriptors).entityTypes());
  const types = new Set<string>();
  let rest = false;
  const envelope = new Envelope();
  const reader = await SourceReader.open(connection, file, getsOn);
  for await (const { events, rejects } of reader.batches(START)) {
    rest ||= rejects.length > 0;
    if (events === undefined) continue;
    const { bytes, fields, count } = events;
    for (let at = 0; at < count; at++) {
      envelope.read(bytes, fields[at * 2]!, fields[at * 2 + 1]!, 0);
      const type = envelope.entityType();
      if (known.has(type)) types.add(type);
      else rest = true;
    }
  }
  return { types: [...types], rest };
}
