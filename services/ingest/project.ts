import type { Config } from "../base/config.js";
import type { Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { ProtoRegistry } from "../contracts/registry.js";
import { type BoundModel, bindModel } from "../models/bind.js";
import { loadModels } from "../models/project.js";
import { refinedSpec } from "./refined-table.js";

/** What a deployment is about: its descriptors, and the models bound against them. */
export interface Project {
  readonly registry: ProtoRegistry;
  readonly models: readonly BoundModel[];
}

/** A model that does not fit, and why. */
export interface BrokenModel {
  readonly name: string;
  readonly error: TributaryError;
}

/**
 * Reads descriptors and models, and binds each model down to the table it makes; those that do not fit stand apart.
 * Errors: TRB-CONFIG (descriptors), TRB-MODEL-INVALID (the dbt project as a whole).
 */
export async function loadProject(
  config: Pick<Config, "protoDirs" | "protoDescriptors" | "transformsDir">,
  duck: Duck,
): Promise<Project & { readonly broken: readonly BrokenModel[] }> {
  const registry = ProtoRegistry.load(config.protoDirs, config.protoDescriptors);
  const models: BoundModel[] = [];
  const broken: BrokenModel[] = [];
  await duck.with(async (connection) => {
    for (const model of loadModels(config.transformsDir)) {
      try {
        const bound = await bindModel(connection, registry, model);
        await refinedSpec(connection, bound);
        models.push(bound);
      } catch (error) {
        if (!(error instanceof TributaryError)) throw error;
        broken.push({ name: model.name, error });
      }
    }
  });
  return { registry, models, broken };
}
