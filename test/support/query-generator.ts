/**
 * Random SELECTs over the tables of query-lake.ts, the same for the same seed. Each has one right answer: whatever
 * depends on an order says which, and sums are of exact numbers.
 */
export interface GeneratedQuery {
  readonly sql: string;
  /** Whether the order of the rows is part of the answer. */
  readonly ordered: boolean;
}

type Kind = "text" | "number" | "time";

interface TableShape {
  readonly name: string;
  readonly columns: Readonly<Record<Kind, readonly string[]>>;
  /** Values its texts hold, and some they do not. */
  readonly texts: readonly string[];
}

const TABLES: readonly TableShape[] = [
  {
    name: "files",
    columns: {
      text: ["path", "directory", "extension", "last_author"],
      number: ["change_count", "lines_added"],
      time: ["modified_at"],
    },
    texts: ["'ts'", "'md'", "'src/quokka/dir3'", "'quokka-author-2'", "'zanzibarite-author-2'", "''"],
  },
  {
    name: "commits",
    columns: { text: ["sha", "author", "subject"], number: ["insertions"], time: ["authored_at"] },
    texts: ["'quokka-author-1'", "'change 7 quokka'", "'wolframite-author-1'"],
  },
  {
    name: "issues",
    columns: {
      text: ["key", "project", "status", "assignee"],
      number: ["priority", "cost"],
      time: ["resolved_at"],
    },
    texts: ["'open'", "'done'", "'quokka-P1'", "'quokka-author-3'", "'xylophagous-P1'"],
  },
  {
    name: "projects",
    columns: { text: ["name", "lead"], number: ["budget"], time: [] },
    texts: ["'quokka-P1'", "'quokka-author-0'"],
  },
];

export function* generateQueries(seed: number, count: number): Generator<GeneratedQuery> {
  const random = randomOf(seed);
  const writer = new Writer(random);
  for (let at = 0; at < count; at++) yield writer.query();
}

/** mulberry32: small, seeded, good enough to choose with. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

class Writer {
  private readonly random: () => number;

  constructor(random: () => number) {
    this.random = random;
  }

  query(): GeneratedQuery {
    const kinds = [
      () => this.rows(),
      () => this.groups(),
      () => this.join(),
      () => this.windows(),
      () => this.commonTables(),
      () => this.setOperation(),
      () => this.subqueries(),
      () => this.lists(),
      () => this.distinct(),
      () => this.rollup(),
    ];
    return this.pick(kinds)();
  }

  private rows(): GeneratedQuery {
    const table = this.pick(TABLES);
    const sql = `select entity_id, ${this.expression(table, "t")} as x, ${this.expression(table, "t")} as y from ${this.named(table)} t where ${this.condition(table, "t")} order by ${this.order(table, "t")}, entity_id limit ${this.int(1, 40)} offset ${this.int(0, 5)}`;
    return { sql, ordered: true };
  }

  private groups(): GeneratedQuery {
    const table = this.pick(TABLES);
    const key = this.expression(table, "t");
    const sql = `select ${key} as k, ${this.aggregate(table, "t")} as a, ${this.aggregate(table, "t")} as b from ${this.named(table)} t where ${this.condition(table, "t")} group by ${this.chance(0.5) ? key : "all"} having count(*) >= ${this.int(0, 3)}`;
    return { sql, ordered: false };
  }

  private join(): GeneratedQuery {
    const left = this.pick(TABLES);
    const right = this.pick(TABLES);
    const kind = this.pick(["join", "left join", "full join", "semi join", "anti join"]);
    const on = this.chance(0.6)
      ? "l.entity_id = r.entity_id"
      : `l.${this.pick(left.columns.text)} = r.${this.pick(right.columns.text)}`;
    const both = kind !== "semi join" && kind !== "anti join";
    const shown = both ? `, ${this.aggregate(right, "r")} as b` : "";
    const sql = `select ${this.expression(left, "l")} as k, ${this.aggregate(left, "l")} as a${shown} from ${this.named(left)} l ${kind} ${this.named(right)} r on ${on} where ${this.condition(left, "l")} group by all`;
    return { sql, ordered: false };
  }

  private windows(): GeneratedQuery {
    const table = this.pick(TABLES);
    const partition = this.pick(table.columns.text);
    const measure = this.pick(table.columns.number);
    const over = `(partition by ${partition} order by ${this.order(table, "t")}, entity_id)`;
    const call = this.pick([
      "row_number()",
      `lag(${measure}) over_gap`,
      `lead(${measure}, 2) over_gap`,
      `sum(${measure})`,
      `count(*) filter (where ${this.condition(table, "t")})`,
      `first_value(${partition})`,
      `max(${measure})`,
      `ntile(${this.int(1, 5)})`,
    ]).replace(" over_gap", "");
    const qualify = this.chance(0.4) ? ` qualify row_number() over ${over} <= ${this.int(1, 4)}` : "";
    const sql = `select entity_id, ${call} over ${over} as w from ${this.named(table)} t${qualify} order by entity_id`;
    return { sql, ordered: true };
  }

  private commonTables(): GeneratedQuery {
    const table = this.pick(TABLES);
    // A common table may have a table's own name.
    const name = this.pick(["c", "picked", table.name, "commits"]);
    const second = this.chance(0.5) ? `, d as (select k, count(*) as n from ${name} group by all)` : "";
    const from = second === "" ? `select k, v from ${name}` : "select k, n from d";
    const sql = `with ${name} as (select ${this.expression(table, "t")} as k, ${this.pick(table.columns.number)} as v from ${this.qualified(table)} t where ${this.condition(table, "t")})${second} ${from}`;
    return { sql, ordered: false };
  }

  private setOperation(): GeneratedQuery {
    const operation = this.pick(["union", "union all", "intersect", "except"]);
    const part = () => {
      const table = this.pick(TABLES);
      return `select ${this.pick(table.columns.text)} from ${this.named(table)} t where ${this.condition(table, "t")}`;
    };
    return { sql: `${part()} ${operation} ${part()}`, ordered: false };
  }

  private subqueries(): GeneratedQuery {
    const outer = this.pick(TABLES);
    const inner = this.pick(TABLES);
    const condition = this.pick([
      `exists (select 1 from ${this.named(inner)} i where i.entity_id = t.entity_id and ${this.condition(inner, "i")})`,
      `t.${this.pick(outer.columns.text)} in (select ${this.pick(inner.columns.text)} from ${this.named(inner)} i)`,
      `t.${this.pick(outer.columns.number)} > (select avg(${this.pick(inner.columns.number)}) from ${this.named(inner)} i)`,
      `t.entity_id not in (select entity_id from ${this.named(inner)} i where ${this.condition(inner, "i")})`,
    ]);
    const column = this.chance(0.5)
      ? `(select count(*) from ${this.named(inner)} j where j.entity_id <= t.entity_id)`
      : this.expression(outer, "t");
    const sql = `select t.entity_id, ${column} as x from ${this.named(outer)} t where ${condition} order by 1`;
    return { sql, ordered: true };
  }

  private lists(): GeneratedQuery {
    const sql = this.pick([
      `select l, count(*) from (select unnest(labels) as l from issues t where ${this.condition(TABLES[2]!, "t")}) group by l`,
      `select custom['owner'], count(*) from issues t where ${this.condition(TABLES[2]!, "t")} group by 1`,
      `select list(path order by entity_id)[1:${this.int(1, 4)}] from files t where ${this.condition(TABLES[0]!, "t")}`,
      `select entity_id, list_transform(labels, lambda x: upper(x)) from issues t where ${this.condition(TABLES[2]!, "t")}`,
      `select c.sha, p.subject from commits c join commits p on c.parents[1] = p.sha where c.insertions > ${this.int(0, 100)}`,
      `select string_agg(key, ',' order by key) from issues t where ${this.condition(TABLES[2]!, "t")}`,
    ]);
    return { sql, ordered: false };
  }

  private distinct(): GeneratedQuery {
    const table = this.pick(TABLES);
    const sql = this.chance(0.5)
      ? `select distinct ${this.expression(table, "t")}, ${this.expression(table, "t")} from ${this.named(table)} t`
      : `select * from ${this.named(table)} t where ${this.condition(table, "t")}`;
    return { sql, ordered: false };
  }

  private rollup(): GeneratedQuery {
    const table = this.pick(TABLES);
    const [a, b] = [this.pick(table.columns.text), "tenant_id"];
    const sets = this.pick([`rollup(${a}, ${b})`, `cube(${a}, ${b})`, `grouping sets ((${a}), (${b}), ())`]);
    return {
      sql: `select ${a}, ${b}, grouping(${a}), ${this.aggregate(table, "t")} from ${this.named(table)} t group by ${sets}`,
      ordered: false,
    };
  }

  // --- parts --------------------------------------------------------------------------------------------

  private expression(table: TableShape, alias: string): string {
    const text = `${alias}.${this.pick(table.columns.text)}`;
    const number = `${alias}.${this.pick(table.columns.number)}`;
    const time = this.pick([...table.columns.time, undefined]);
    const choices = [
      text,
      number,
      `upper(${text})`,
      `length(${text})`,
      `left(${text}, ${this.int(1, 9)})`,
      `coalesce(${text}, 'none')`,
      `${number} % ${this.int(2, 9)}`,
      `case when ${this.condition(table, alias)} then ${text} else 'else' end`,
      `${text} || '/' || ${number}`,
      `regexp_replace(${text}, '[0-9]+', '#')`,
      `(${number} between 1 and 50)`,
      ...(time === undefined
        ? []
        : [
            `date_trunc('month', ${alias}.${time})`,
            `year(${alias}.${time})`,
            `${alias}.${time}::date`,
            `strftime(${alias}.${time}, '%Y-%W')`,
          ]),
    ];
    return this.pick(choices);
  }

  private aggregate(table: TableShape, alias: string): string {
    const text = `${alias}.${this.pick(table.columns.text)}`;
    const number = `${alias}.${this.pick(table.columns.number)}`;
    return this.pick([
      "count(*)",
      `count(distinct ${text})`,
      `sum(${number})`,
      `min(${text})`,
      `max(${number})`,
      `round(avg(${number}), 4)`,
      `median(${number})`,
      `bool_and(${number} > ${this.int(0, 50)})`,
      `arg_max(${alias}.entity_id, ${alias}.entity_id)`,
      `sum(${number}) filter (where ${this.condition(table, alias)})`,
    ]);
  }

  private condition(table: TableShape, alias: string): string {
    const text = `${alias}.${this.pick(table.columns.text)}`;
    const number = `${alias}.${this.pick(table.columns.number)}`;
    const simple = () =>
      this.pick([
        `${text} = ${this.pick(table.texts)}`,
        `${text} <> ${this.pick(table.texts)}`,
        `${text} is ${this.chance(0.5) ? "not " : ""}null`,
        `${text} like '%${this.int(0, 9)}%'`,
        `${number} > ${this.int(0, 1500)}`,
        `${number} < ${this.pick([5, 50, 1100, 800_000_000])}`,
        `${number} in (${this.int(0, 9)}, ${this.int(0, 99)}, ${this.int(1000, 1100)})`,
        `${alias}.tenant_id = 'acme'`,
        `${alias}.tenant_id <> 'globex:eu-west'`,
        `hash(${text}) % 3 = ${this.int(0, 2)}`,
        "true",
      ]);
    const first = simple();
    if (this.chance(0.6)) return first;
    return `(${first} ${this.pick(["and", "or"])} ${this.chance(0.2) ? "not " : ""}${simple()})`;
  }

  private order(table: TableShape, alias: string): string {
    const column = this.pick([...table.columns.text, ...table.columns.number, ...table.columns.time]);
    return `${alias}.${column}${this.pick(["", " desc", " nulls last", " desc nulls last"])}`;
  }

  private named(table: TableShape): string {
    return this.chance(0.5) ? table.name : this.qualified(table);
  }

  private qualified(table: TableShape): string {
    return table.name === "files" || table.name === "commits" ? `scm.${table.name}` : `tracker.${table.name}`;
  }

  private pick<T>(from: readonly T[]): T {
    return from[Math.floor(this.random() * from.length)]!;
  }

  private int(from: number, to: number): number {
    return from + Math.floor(this.random() * (to - from + 1));
  }

  private chance(of: number): boolean {
    return this.random() < of;
  }
}
