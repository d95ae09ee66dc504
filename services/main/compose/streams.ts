import type { Logger } from "pino";
import type { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { hasCode, TributaryError } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import { Retry } from "../../base/retry.js";
import type { ChangeStreamReader, ChangeStreamWriter } from "../../stream/change-stream.js";
import { domainOf, type Streams } from "../../stream/domains.js";
import { EmbeddedLogReader } from "../../stream/embedded/reader.js";
import { EmbeddedLogWriter } from "../../stream/embedded/writer.js";

/** The kind of streams that is configured. Of those by domain, one adapter object is one stream. */
export interface StreamKind {
  /** The name of the stream for events of this type: its domain's own (see stream/domains.ts), or the one for all. */
  nameOf(entityType: string): string;
  /** Errors: TRB-CONFIG; TRB-BUS-STREAM-DOWN when it may be there later. */
  writer(name: string): Promise<ChangeStreamWriter>;
  reader(name: string): Promise<ChangeStreamReader>;
}

/** Clients of remote streams are loaded where they are configured, and nowhere else. */
export async function streamKind(config: Config, metrics?: Registry): Promise<StreamKind> {
  if (config.stream.kind === "embedded") return embedded(config);
  if (config.stream.kind === "kinesis") {
    const { kinesisStreams } = await import("./kinesis-streams.js");
    return kinesisStreams(config, metrics);
  }
  const { kafkaStreams } = await import("./kafka-streams.js");
  return kafkaStreams(config);
}

/** One log for all domains: it has one disk, whatever we do. */
function embedded({ data, stream: { partitions, segmentBytes } }: Config): StreamKind {
  const folder = layout(data).stream;
  return {
    nameOf: () => "embedded",
    writer: () => EmbeddedLogWriter.open({ folder, partitions, segmentBytes }),
    reader: () => EmbeddedLogReader.open({ folder, partitions }),
  };
}

/**
 * Of these entity types, those of the given domains; all when none is given. Errors: TRB-CONFIG for a domain without
 * types, or without a stream of its own: landing it alone would leave the others of its stream unread.
 */
export function typesOfDomains(
  kind: Pick<StreamKind, "nameOf">,
  entityTypes: readonly string[],
  domains: readonly string[],
): readonly string[] {
  if (domains.length === 0) return entityTypes;
  const known = new Set(entityTypes.map(domainOf));
  const unknown = domains.find((domain) => !known.has(domain));
  if (unknown !== undefined) {
    const expected = [...known].sort().join(", ");
    throw new TributaryError("TRB-CONFIG", `ingest.domains: expected some of ${expected}, found ${unknown}`);
  }
  const isWanted = (type: string) => domains.includes(domainOf(type));
  const names = new Set(entityTypes.filter(isWanted).map((type) => kind.nameOf(type)));
  if (entityTypes.some((type) => !isWanted(type) && names.has(kind.nameOf(type)))) {
    throw new TributaryError(
      "TRB-CONFIG",
      "ingest.domains: expected domains that share no stream with others (stream.kind kafka or kinesis, without one for all)",
    );
  }
  return entityTypes.filter(isWanted);
}

interface Closable {
  close(): Promise<void>;
}

/** Streams by name, opened side by side. One that is down is tried again and again, and holds up no other. */
export class OpenStreams<S extends Closable> implements Streams<S> {
  private readonly open = new Map<string, S>();
  private readonly wanted = new Map<string, Promise<void>>();
  private readonly stopping = new AbortController();

  /** `opened` is told of each, once. */
  constructor(
    private readonly kind: Pick<StreamKind, "nameOf">,
    private readonly openOne: (name: string) => Promise<S>,
    private readonly log: Pick<Logger, "error" | "info">,
    private readonly opened: (stream: S, name: string) => void = () => undefined,
  ) {}

  nameOf(entityType: string): string {
    return this.kind.nameOf(entityType);
  }

  stream(name: string): S | undefined {
    return this.open.get(name);
  }

  /** By name, whether it is open. */
  get states(): ReadonlyMap<string, "open" | "down"> {
    return new Map([...this.wanted.keys()].map((name) => [name, this.open.has(name) ? "open" : "down"]));
  }

  /**
   * Opens what these types need and is not open yet. Resolves when each is open or was found to be down.
   * Errors: those that trying again does not help with.
   */
  async want(entityTypes: readonly string[]): Promise<void> {
    const names = new Set(entityTypes.map((type) => this.nameOf(type)));
    await Promise.all(
      [...names].map((name) => {
        let wanted = this.wanted.get(name);
        if (wanted === undefined) {
          wanted = this.tryOpen(name);
          this.wanted.set(name, wanted);
        }
        return wanted;
      }),
    );
  }

  /** The same in the course of running: what cannot be opened is told in the log, and its types stay without a stream. */
  wantSoon(entityTypes: readonly string[]): void {
    this.want(entityTypes).catch((error: unknown) =>
      this.log.error({ err: error }, "a stream cannot be opened"),
    );
  }

  private async tryOpen(name: string): Promise<void> {
    try {
      this.take(name, await this.openOne(name));
    } catch (error) {
      if (!hasCode(error, "TRB-BUS-STREAM-DOWN")) throw error;
      this.log.error({ err: error, stream: name }, "a stream is down; trying again");
      void this.keepTrying(name);
    }
  }

  private keepTrying(name: string): Promise<void> {
    return new Retry(this.stopping.signal)
      .run(
        async () => this.take(name, await this.openOne(name)),
        ({ error }) => this.log.error({ err: error, stream: name }, "a stream is down; trying again"),
      )
      .catch(() => undefined);
  }

  private take(name: string, stream: S): void {
    if (this.stopping.signal.aborted) {
      void stream.close();
      return;
    }
    this.open.set(name, stream);
    this.log.info({ stream: name }, "a stream is open");
    this.opened(stream, name);
  }

  async close(): Promise<void> {
    this.stopping.abort();
    await Promise.allSettled(this.wanted.values());
    await Promise.all([...this.open.values()].map((stream) => stream.close()));
  }
}
