import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Logger } from "pino";
import { Gauge, type Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { Turns } from "../../base/turns.js";
import { incompatibilities } from "../../contracts/compatibility.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { type BrokenModel, loadProject, type Project } from "../../ingest/project.js";
import { readingDuck } from "./runtime.js";

export interface KeeperOptions {
  readonly config: Config;
  readonly log: Logger;
  readonly metrics: Registry;
  /** Models too; a bus alone needs none, and has no folder of them. */
  readonly models: boolean;
}

/**
 * The descriptors and models in force. They are read again when their files change or somebody asks; what is read takes
 * the old one's place as a whole or, when any part of it does not fit, not at all: the old one goes on, and the log,
 * /readyz and a metric say so.
 */
export class ProjectKeeper {
  private now: Project = { registry: ProtoRegistry.of(new Uint8Array()), models: [] };
  private wrong: TributaryError | undefined;
  private readonly listeners: ((project: Project) => void)[] = [];
  private readonly turns = new Turns();
  private timer: NodeJS.Timeout | undefined;
  /** What the files looked like when they were last read, and at the last look. */
  private read = "";
  private seen = "";

  private constructor(private readonly options: KeeperOptions) {
    const problem = () => this.wrong;
    new Gauge({
      name: "tributary_project_broken",
      help: "1 while the newest descriptors or models do not fit and older ones are in force.",
      registers: [options.metrics],
      collect() {
        this.set(problem() === undefined ? 0 : 1);
      },
    });
  }

  /** Models that do not fit are left out and told of, the others go on. Errors: TRB-CONFIG, TRB-MODEL-INVALID. */
  static async open(options: KeeperOptions): Promise<ProjectKeeper> {
    const keeper = new ProjectKeeper(options);
    keeper.read = await keeper.look();
    const { broken, ...project } = await keeper.load();
    keeper.now = project;
    if (broken.length > 0) keeper.refuse(brokenModels(broken));
    keeper.watch();
    return keeper;
  }

  get current(): Project {
    return this.now;
  }

  /** Why the newest project is not in force; undefined when it is. */
  get problem(): TributaryError | undefined {
    return this.wrong;
  }

  onChange(listener: (project: Project) => void): void {
    this.listeners.push(listener);
  }

  /** Reads everything again and goes on with it, or tells why not. */
  reload(): Promise<void> {
    return this.turns.run(() => this.replace());
  }

  async close(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    await this.turns.settled();
  }

  private async replace(): Promise<void> {
    try {
      this.read = await this.look();
      const { broken, ...project } = await this.load();
      const harm = incompatibilities(this.now.registry, project.registry);
      if (harm.length > 0) {
        throw new TributaryError(
          "TRB-CONFIG",
          `protoDirs: accepted payloads could not be read any more: ${harm.join("; ")}. A restart goes through with it`,
        );
      }
      if (broken.length > 0) throw brokenModels(broken);
      this.wrong = undefined;
      if (equal(project, this.now)) return;
      this.now = project;
      for (const listener of this.listeners) listener(project);
      const { registry, models } = project;
      this.options.log.info(
        { entityTypes: registry.entityTypes(), models: models.map(({ name }) => name) },
        "descriptors and models were read again and are in force",
      );
    } catch (error) {
      if (!(error instanceof TributaryError)) throw error;
      this.refuse(error);
    }
  }

  private refuse(error: TributaryError): void {
    this.wrong = error;
    this.options.log.error(
      { code: error.code, reason: error.message },
      "descriptors or models do not fit; what was in force goes on",
    );
  }

  private async load(): Promise<Project & { readonly broken: readonly BrokenModel[] }> {
    const { config, models } = this.options;
    if (!models) {
      return {
        registry: ProtoRegistry.load(config.protoDirs, config.protoDescriptors),
        models: [],
        broken: [],
      };
    }
    const duck = await readingDuck();
    return loadProject(config, duck).finally(() => duck.close());
  }

  /** Looks at the files now and then; two equal looks are a change that is over. */
  private watch(): void {
    const { watchMs } = this.options.config;
    if (watchMs === 0) return;
    const tick = async (): Promise<void> => {
      const files = await this.look();
      if (files !== this.read && files === this.seen) await this.reload();
      this.seen = files;
    };
    const again = (): void => {
      this.timer = setTimeout(() => {
        const { timer } = this;
        void tick()
          .catch((error: unknown) =>
            this.options.log.error({ err: error }, "descriptors cannot be looked at"),
          )
          // Closed meanwhile otherwise.
          .then(() => (this.timer === timer ? again() : undefined));
      }, watchMs);
      this.timer.unref();
    };
    again();
  }

  /** Names, sizes and times of all files that matter; what cannot be read counts as not there. */
  private async look(): Promise<string> {
    const { protoDirs, protoDescriptors, transformsDir } = this.options.config;
    const folders = await Promise.all([
      ...protoDirs.map((dir) => filesBelow(dir, /\.proto$/)),
      ...(this.options.models ? [filesBelow(join(transformsDir, "models"), /\.(sql|ya?ml)$/)] : []),
    ]);
    const files = [...folders.flat(), ...protoDescriptors];
    const looks = await Promise.all(files.map(lookAt));
    return looks.join("\n");
  }
}

async function filesBelow(dir: string, pattern: RegExp): Promise<string[]> {
  const names = await readdir(dir, { recursive: true }).catch(() => []);
  return names
    .filter((name) => pattern.test(name))
    .sort()
    .map((name) => join(dir, name));
}

async function lookAt(path: string): Promise<string> {
  const found = await stat(path, { bigint: true }).catch(() => undefined);
  return `${path} ${found?.ino} ${found?.size} ${found?.mtimeNs}`;
}

const equal = (one: Project, other: Project): boolean =>
  isDeepStrictEqual(one.models, other.models) &&
  Buffer.compare(one.registry.bytes(), other.registry.bytes()) === 0;

const brokenModels = (broken: readonly BrokenModel[]): TributaryError =>
  new TributaryError("TRB-MODEL-INVALID", broken.map(({ error }) => error.message).join("; "));
