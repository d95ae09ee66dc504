import { basename, join } from "node:path";
import { TributaryError } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import type { IngestContext } from "../../ingest/context.js";
import { inspect } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import { type Place, Sources } from "../../sources/sources.js";
import type { ObjectStore } from "../../storage/object-store.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import { type EventShare, sharesOf } from "../chunks/event-types.js";
import type { BootstrapJob } from "../jobs/job.js";
import { checkBootstrap, requirePassed } from "./bootstrap-check.js";

/** What a job reads. Plain JSON. */
export interface JobSource {
  readonly manifest: Manifest;
  /** Of whole events of any type: what of it lands where. A type that is known since is no part of the job. */
  readonly shares?: readonly EventShare[];
  /** Fingerprints of the descriptors that its rows are mapped by, by entity type. */
  readonly descriptors?: Readonly<Record<string, string>>;
}

const keyOf = (id: string): string => `jobs/manifests/${id}.json`;

/** Undefined before it is settled: nothing of the job has landed then. */
export async function sourceOf(store: Pick<ObjectStore, "get">, id: string): Promise<JobSource | undefined> {
  const kept = await store.get(keyOf(id));
  return kept === undefined ? undefined : (JSON.parse(kept.toString("utf8")) as JobSource);
}

/**
 * Lists a job's source and checks it, once: what is settled has passed, and whoever goes on with the job reads the same.
 * What is refused leaves nothing, so that the job may be resumed when the export was mended. Errors: those of the check,
 * also what it finds against the job.
 */
export async function settleSource(
  context: Pick<IngestContext, "store" | "duck" | "tableOptions" | "registry" | "config">,
  order: BootstrapJob,
  place: Place,
): Promise<JobSource> {
  const { store, config, registry } = context;
  const settled = await sourceOf(store, order.id);
  if (settled !== undefined) return settled;
  const manifest = await inspect(place, order, config.bulk);
  // Producers may have begun since it was asked for, and the source may be another.
  requirePassed(await checkBootstrap(context, order, place, manifest));
  const { entityType } = order;
  const shares =
    entityType === undefined ? await sharesOf(place, manifest, config.bulk, registry) : undefined;
  const types = shares?.map((share) => share.entityType) ?? [entityType!];
  const found: JobSource = {
    manifest,
    ...(shares === undefined ? {} : { shares }),
    descriptors: Object.fromEntries(types.map((type) => [type, registry.fingerprint(type)])),
  };
  // Of two runs at once one has listed for both.
  const created = await store.putIfAbsent(keyOf(order.id), Buffer.from(JSON.stringify(found)));
  return created === "created" ? found : settleSource(context, order, place);
}

/**
 * Sources of so many bytes hold some turns' worth of rows: beside live events these are merged as dearly, and files of
 * their own and commits that overtake live ones are for nothing.
 */
const SMALL = 1024 * 1024;
const isSmall = ({ files }: Manifest): boolean => files.reduce((sum, { bytes }) => sum + bytes, 0) <= SMALL;

/** What a job lands, type by type. */
export function landingsOf(
  { config }: Pick<IngestContext, "config">,
  { id, tenant, mapping, csv, entityType, through: asked }: BootstrapJob,
  place: Place,
  { manifest, shares, descriptors }: JobSource,
): BootstrapOrder[] {
  const through = asked ?? (isSmall(manifest) ? "queue" : "files");
  const all = { job: id, place, manifest, tenant, mapping, csv, through, limits: config.bulk };
  const landing = (type: string) => ({ ...all, entityType: type, descriptor: descriptors?.[type] });
  if (entityType !== undefined) return [landing(entityType)];
  if (shares === undefined)
    throw new TributaryError("TRB-BULK-MAPPING", "entityType: expected that of what the source holds");
  return shares.map((share) => ({ ...landing(share.entityType), share }));
}

/** Lends where an order's source lies. Errors: those of the source's place. */
export async function withPlace<T>(
  { config, store }: Pick<IngestContext, "config" | "store">,
  { source }: Pick<BootstrapJob, "source">,
  use: (place: Place) => Promise<T>,
): Promise<T> {
  // Of this process alone, and emptied by the next one in its place.
  const scratch = join(layout(config.data).scratch, basename(store.staging), "sources");
  const sources = await Sources.open(config, scratch);
  try {
    return await use(sources.at(source));
  } finally {
    sources.close();
  }
}
