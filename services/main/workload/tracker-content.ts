import type protobuf from "protobufjs";
import { WireWriter } from "../../contracts/wire-writer.js";
import type { Random } from "./random.js";

/** The fields of an issue that its history gives. Times in seconds since the epoch. */
export interface IssueFacts {
  readonly key: string;
  readonly projectKey: string;
  readonly createdAt: number;
  readonly updatedAt: number;
  readonly descriptionLength: number;
  readonly votes: number;
}

/** How many ways there are to fill in the fields that mean nothing to an issue's history. */
const VARIANTS = 4096;

/**
 * Makes payloads of tracker.v1.Issue. Most fields are picked and encoded once, as one of many variants; a payload is
 * a variant's bytes and those of the facts, which in protobuf is the message of both.
 */
export class IssueMaker {
  private readonly writer = new WireWriter(128 * 1024);
  private readonly variants: { readonly bytes: Uint8Array; readonly done: boolean }[] = [];
  private readonly fields: Readonly<Record<Fact, number>>;

  constructor(type: protobuf.Type, random: Random) {
    this.fields = Object.fromEntries(FACTS.map((name) => [name, type.fields[name]!.id])) as Record<
      Fact,
      number
    >;
    for (let i = 0; i < VARIANTS; i++) {
      const fields = variant(random);
      const bytes = Uint8Array.prototype.slice.call(type.encode(fields).finish());
      this.variants.push({ bytes, done: fields.status_category === DONE });
    }
  }

  /** The payload; holds until the next call. */
  make(random: Random, facts: IssueFacts): Buffer {
    const { bytes, done } = random.pick(this.variants);
    const start = random.below(PROSE.length - facts.descriptionLength);
    const fields = this.fields;
    const writer = this.writer
      .reset()
      .raw(bytes)
      .ascii(fields.key, facts.key)
      .ascii(fields.project_key, facts.projectKey)
      .bytes(fields.description, PROSE, start, start + facts.descriptionLength)
      .time(fields.created_at, facts.createdAt)
      .time(fields.updated_at, facts.updatedAt)
      .number(fields.vote_count, facts.votes);
    if (done) writer.time(fields.resolved_at, facts.updatedAt);
    return writer.view();
  }
}

const FACTS = [
  "key",
  "project_key",
  "description",
  "created_at",
  "updated_at",
  "resolved_at",
  "vote_count",
] as const;
type Fact = (typeof FACTS)[number];

function variant(random: Random): Record<string, unknown> {
  const state = random.pick(STATES);
  const estimate = random.chance(0.6) ? 1800 * (1 + random.below(40)) : undefined;
  const spent = 900 * random.below(30);
  return {
    summary: `${random.pick(VERBS)} ${random.pick(THINGS)} ${random.pick(PLACES)}`,
    type: random.pick(TYPES),
    status: state.name,
    status_category: state.category,
    priority: 1 + random.below(5),
    assignee: random.chance(0.8) ? random.pick(PEOPLE) : "",
    reporter: random.pick(PEOPLE),
    labels: some(random, LABELS, 4),
    components: some(random, COMPONENTS, 2),
    fix_versions: random.chance(0.4) ? [`${1 + random.below(4)}.${random.below(12)}.0`] : [],
    parent_key: random.chance(0.2) ? `${random.pick(["PAY", "WEB", "OPS"])}-${1 + random.below(20)}` : "",
    ...(estimate === undefined
      ? {}
      : {
          original_estimate_seconds: estimate,
          remaining_estimate_seconds: Math.max(0, estimate - spent),
        }),
    time_spent_seconds: spent,
    ...(random.chance(0.5) ? { story_points: random.pick(POINTS) } : {}),
    resolution: state.category === DONE ? random.pick(RESOLUTIONS) : "",
    ...(random.chance(0.3) ? { due_at: { seconds: 1_700_000_000 + 86_400 * random.below(365) } } : {}),
    custom_fields: customFields(random),
    comment_count: random.below(25),
    watcher_count: random.below(12),
  };
}

/** A tracker.v1.Project, fields named as in the .proto file. */
export function project(
  random: Random,
  fields: { key: string; createdAt: number; updatedAt: number },
): Record<string, unknown> {
  const archived = random.chance(0.05);
  const description = random.below(PROSE.length - 120);
  return {
    key: fields.key,
    name: `${random.pick(THINGS)} (${fields.key})`,
    description: PROSE.toString("latin1", description, description + 40 + random.below(80)),
    lead: random.pick(PEOPLE),
    category: random.chance(0.7) ? random.pick(CATEGORIES) : "",
    archived,
    created_at: { seconds: fields.createdAt },
    updated_at: { seconds: fields.updatedAt },
    ...(archived ? { archived_at: { seconds: fields.updatedAt } } : {}),
  };
}

/** Distinct items, at most `max`, in the list's order from a random start. */
function some(random: Random, items: readonly string[], max: number): readonly string[] {
  const count = random.below(max + 1);
  if (count === 0) return [];
  const start = random.below(items.length - count + 1);
  return items.slice(start, start + count);
}

function customFields(random: Random): Record<string, string> {
  const fields: Record<string, string> = {};
  if (random.chance(0.5)) fields.Team = random.pick(COMPONENTS);
  if (random.chance(0.3)) fields["Customer impact"] = random.pick(["none", "some", "many", "all"]);
  if (random.chance(0.1)) fields["Root cause"] = random.pick(THINGS);
  return fields;
}

const words = (text: string): readonly string[] => text.trim().split(/\s*,\s*/);

const TO_DO = 1;
const IN_PROGRESS = 2;
const DONE = 3;
const STATES = [
  { name: "Open", category: TO_DO },
  { name: "Selected", category: TO_DO },
  { name: "In progress", category: IN_PROGRESS },
  { name: "In review", category: IN_PROGRESS },
  { name: "Closed", category: DONE },
] as const;
const TYPES = words("Bug, Story, Task, Epic, Sub-task, Incident");
const RESOLUTIONS = words("Fixed, Duplicate, Won't do, Cannot reproduce");
const POINTS = [0.5, 1, 2, 3, 5, 8, 13];
const CATEGORIES = words("Platform, Product, Internal, Customer");
const LABELS = words(
  "regression, security, ux, performance, customer, tech-debt, flaky, docs, a11y, migration",
);
const COMPONENTS = words("api, web, mobile, billing, search, exports, login, notifications, audit");
const VERBS = words("Fix, Add, Remove, Speed up, Rework, Document, Investigate, Retry, Validate, Translate");
const THINGS = words(
  "invoice totals, login form, export job, search filters, webhook delivery, naïve date parsing, audit trail, " +
    "page header, password reset, currency rounding, 日本語 sorting, retry queue, café receipts, upload limit 🙂",
);
const PLACES = words(
  "on mobile, in checkout, after upgrade, for large tenants, behind proxies, in dark mode",
);
const PEOPLE = words(
  "amara.okafor, bruno.silva, chen.wei, dana.levi, elif.kaya, farid.rahimi, greta.lind, hana.sato, ivan.petrov, " +
    "jo.murphy, kofi.mensah, lena.vogel, mei.tan, nils.berg, olga.nowak, priya.iyer",
);

const VOCABULARY = (
  "the when a user opens this page with many rows it takes seconds and then fails because an old cache entry still " +
  "points at what was deleted so we should read from primary retry once and log how often that happens before " +
  "release notes mention steps to reproduce expected actual result attached screenshot shows error after second click"
).split(" ");

/** Text that descriptions are cut from, in ASCII. */
const PROSE = (() => {
  let state = 1;
  const parts: string[] = [];
  for (let length = 0; length < 65_536; ) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    const word = VOCABULARY[(state >>> 8) % VOCABULARY.length]!;
    const gap = (state >>> 4) % 19 === 0 ? ".\n" : " ";
    parts.push(word, gap);
    length += word.length + gap.length;
  }
  return Buffer.from(parts.join(""), "latin1");
})();
