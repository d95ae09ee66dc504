import type { CsvOptions } from "../../sources/formats.js";
import type { ReadLimits } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import type { Mapping } from "../../sources/mapping.js";
import type { Place } from "../../sources/sources.js";
import type { NextChunk } from "./chunk-protocol.js";
import type { EventShare } from "./event-types.js";

/** What a job lands, and where it comes from. */
export interface BootstrapOrder {
  readonly job: string;
  readonly entityType: string;
  /** The fingerprint of its descriptor when the job began. */
  readonly descriptor?: string | undefined;
  /** Rows of others are rejected. */
  readonly tenant: string | undefined;
  /** None for whole events. */
  readonly mapping: Mapping | undefined;
  readonly place: Place;
  /** As it was when the job began. */
  readonly manifest: Manifest;
  readonly limits: ReadLimits;
  /** Of whole events, what others of the same job land; and the files that hold what is to be landed here. */
  readonly share?: EventShare | undefined;
  /** How its files are written, if that is CSV. */
  readonly csv?: CsvOptions | undefined;
  /** Straight into the tables, or into the import queue; files when absent. */
  readonly through?: "files" | "queue" | undefined;
  readonly chunk?: Pick<NextChunk, "rows" | "bytes">;
}
