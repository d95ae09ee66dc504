import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join, relative, sep } from "node:path";
import { Template } from "@huggingface/jinja";
import { isNode, LineCounter, parseDocument } from "yaml";
import { z } from "zod";
import { TributaryError } from "../base/errors.js";

/** A model of the dbt project, rendered: `sql` reads the relation named after its entity type. */
export interface Model {
  /** "scm.files": folder below models/, then file. */
  readonly name: string;
  readonly domain: string;
  readonly table: string;
  readonly entityType: string;
  readonly sql: string;
  /** Its file below the project folder: "models/scm/files.sql", and the text of it, from which `sql` was rendered. */
  readonly file: string;
  readonly template: string;
  readonly description: string | undefined;
  readonly columnDescriptions: ReadonlyMap<string, string>;
  /** Where properties files speak of a column: "models/scm/schema.yml, line 7". */
  readonly columnPlaces: ReadonlyMap<string, string>;
  readonly tests: readonly ModelTest[];
}

export interface ModelTest {
  readonly column: string;
  readonly kind: "not_null" | "unique" | "accepted_values";
  readonly values?: readonly string[];
}

const testSchema = z.union([
  z.enum(["not_null", "unique"]),
  z.strictObject({ accepted_values: z.object({ values: z.array(z.coerce.string()) }) }),
  z.strictObject({
    accepted_values: z.object({ arguments: z.object({ values: z.array(z.coerce.string()) }) }),
  }),
]);
const propertiesSchema = z.object({
  sources: z
    .array(z.object({ name: z.string(), tables: z.array(z.object({ name: z.string() })) }))
    .default([]),
  models: z
    .array(
      z.object({
        name: z.string(),
        description: z.string().optional(),
        columns: z
          .array(
            z.object({
              name: z.string(),
              description: z.string().optional(),
              data_tests: z.array(testSchema).default([]),
            }),
          )
          .default([]),
      }),
    )
    .default([]),
});
interface Properties extends z.infer<typeof propertiesSchema> {
  /** Where the value at a path stands: "models/scm/schema.yml, line 7". */
  readonly placeOf: (path: readonly PropertyKey[]) => string;
}

const configSchema = z.object({
  materialized: z.literal("incremental"),
  unique_key: z.tuple([z.literal("tenant_id"), z.literal("entity_id")]),
});

const NAME = /^[a-z][a-z0-9_]{0,62}$/;

/**
 * Reads the models of a dbt project folder. Models lie one folder deep; the folder is the domain.
 * Errors: TRB-MODEL-INVALID, naming the file and what was expected.
 */
export function loadModels(folder: string): Model[] {
  const root = join(folder, "models");
  const files = filesBelow(root);
  const properties = files
    .filter((file) => /\.ya?ml$/.test(file))
    .map((file) => [file, readProperties(root, file)] as const);
  const sources = new Set(
    properties.flatMap(([, p]) =>
      p.sources.flatMap((s) => s.tables.map((table) => `${s.name}.${table.name}`)),
    ),
  );
  const models = files
    .filter((file) => file.endsWith(".sql"))
    .map((file) => {
      const same = properties.filter(([other]) => dirname(other) === dirname(file)).map(([, p]) => p);
      return loadModel(root, file, same, sources);
    });
  for (const [file, { models: described, placeOf }] of properties) {
    for (const [index, { name }] of described.entries()) {
      if (models.some((model) => model.table === name && model.domain === dirname(file))) continue;
      throw refused(`${placeOf(["models", index, "name"])}: describes a model "${name}" that is not there`);
    }
  }
  return models.sort((a, b) => (a.name < b.name ? -1 : 1));
}

function loadModel(
  root: string,
  file: string,
  properties: readonly Properties[],
  sources: ReadonlySet<string>,
): Model {
  const domain = dirname(file);
  const table = basename(file, ".sql");
  if (!NAME.test(domain) || !NAME.test(table)) {
    throw invalid(file, "expected <domain>/<model>.sql, both of a-z, 0-9 and _");
  }
  const template = readFileSync(join(root, file), "utf8");
  const { sql, entityType } = render(file, template, sources);
  const described = properties.flatMap(({ models }) => models).find(({ name }) => name === table);
  return {
    name: `${domain}.${table}`,
    domain,
    table,
    entityType,
    sql,
    file: `models/${file}`,
    template,
    description: described?.description,
    columnPlaces: columnPlaces(properties, table),
    columnDescriptions: new Map(
      described?.columns.flatMap(({ name, description }) =>
        description === undefined ? [] : [[name, description]],
      ),
    ),
    tests:
      described?.columns.flatMap(({ name, data_tests }) => data_tests.map((test) => modelTest(name, test))) ??
      [],
  };
}

function columnPlaces(properties: readonly Properties[], table: string): Map<string, string> {
  const places = new Map<string, string>();
  for (const { models, placeOf } of properties) {
    for (const [at, { name, columns }] of models.entries()) {
      if (name !== table) continue;
      for (const [index, column] of columns.entries()) {
        places.set(column.name, placeOf(["models", at, "columns", index, "name"]));
      }
    }
  }
  return places;
}

function modelTest(column: string, test: z.infer<typeof testSchema>): ModelTest {
  if (typeof test === "string") return { column, kind: test };
  const { accepted_values } = test;
  const values = "values" in accepted_values ? accepted_values.values : accepted_values.arguments.values;
  return { column, kind: "accepted_values", values };
}

/** Runs the Jinja of a model the way dbt does for an incremental run; a live batch is the increment. */
function render(
  file: string,
  template: string,
  sources: ReadonlySet<string>,
): { sql: string; entityType: string } {
  let entityType: string | undefined;
  let config: unknown;
  /** An error on the first or last line that holds a word. */
  const at = (word: string, message: string, last = false): TributaryError => {
    const found = last ? template.lastIndexOf(word) : template.indexOf(word);
    const line = found < 0 ? "" : `, line ${template.slice(0, found).split("\n").length}`;
    return refused(`models/${file}${line}: ${message}`);
  };
  const context = {
    config: (...args: unknown[]) => {
      config = args.at(-1);
      return "";
    },
    source: (...args: unknown[]) => {
      const [schema, name] = args;
      if (typeof schema !== "string" || typeof name !== "string" || !sources.has(`${schema}.${name}`)) {
        throw at(
          String(name),
          `source('${String(schema)}', '${String(name)}') is not declared in the project`,
        );
      }
      if (entityType !== undefined) throw at("source(", "expected exactly one source()", true);
      entityType = name;
      return `"${name.replaceAll('"', '""')}"`;
    },
    // The batch is the increment: there is nothing to filter, whatever the model would do elsewhere.
    is_incremental: () => false,
  };
  let sql: string;
  try {
    sql = new Template(template).render(context).trim();
  } catch (cause) {
    if (cause instanceof TributaryError) throw cause;
    throw invalid(file, `template: ${(cause as Error).message}`, cause);
  }
  if (entityType === undefined) throw invalid(file, "expected exactly one source(), found none");
  const parsed = configSchema.safeParse(plain(config));
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw at(
      "config(",
      `config(${issue.path.join(".")}): ${issue.message}; expected materialized='incremental', unique_key=['tenant_id', 'entity_id']`,
    );
  }
  return { sql, entityType };
}

/** The template engine hands keyword arguments over as its own value objects. */
function plain(value: unknown): unknown {
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, child]) => [key, plain(child)]));
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "object" && value !== null && "value" in value) return plain(value.value);
  return value;
}

function readProperties(root: string, file: string): Properties {
  const lines = new LineCounter();
  const document = parseDocument(readFileSync(join(root, file), "utf8"), { lineCounter: lines });
  const at = (offset: number) => `models/${file}, line ${lines.linePos(offset).line}`;
  const [error] = document.errors;
  if (error !== undefined) throw refused(`${at(error.pos[0])}: not readable as YAML`, error);
  const placeOf = (path: readonly PropertyKey[]): string => {
    // Of what is not there, the place of what should hold it.
    for (let length = path.length; length > 0; length--) {
      const node: unknown = document.getIn(path.slice(0, length), true);
      if (isNode(node) && node.range != null) return at(node.range[0]);
    }
    return `models/${file}`;
  };
  const parsed = propertiesSchema.safeParse(document.toJS() ?? {});
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw refused(`${placeOf(issue.path)}: ${issue.path.join(".")}: ${issue.message}`);
  }
  return { ...parsed.data, placeOf };
}

function filesBelow(root: string): string[] {
  try {
    return readdirSync(root, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => relative(root, join(entry.parentPath, entry.name)).split(sep).join("/"))
      .sort();
  } catch (cause) {
    throw new TributaryError("TRB-MODEL-INVALID", "the transforms folder has no readable models/ folder", {
      cause,
    });
  }
}

const refused = (message: string, cause?: unknown): TributaryError =>
  new TributaryError("TRB-MODEL-INVALID", message, cause === undefined ? {} : { cause });
const invalid = (file: string, message: string, cause?: unknown): TributaryError =>
  refused(`models/${file}: ${message}`, cause);

export const fingerprintOf = (...parts: readonly string[]): string =>
  createHash("sha256").update(JSON.stringify(parts)).digest("hex");
