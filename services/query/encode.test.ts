import { type DuckDBConnection, DuckDBInstance } from "@duckdb/node-api";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Random } from "../../test/support/lake.js";
import { identifier, literal, rowsOf } from "../base/duckdb.js";
import { RowEncoder } from "./encode.js";

let instance: DuckDBInstance;
let connection: DuckDBConnection;
beforeAll(async () => {
  instance = await DuckDBInstance.create(":memory:", { threads: "1" });
  connection = await instance.connect();
});
afterAll(() => {
  connection.closeSync();
  instance.closeSync();
});

/** A value as SQL, the JSON an answer must give for it, and whether the engine's own JSON says it the same way. */
interface Sample {
  readonly sql: string;
  readonly json: string;
  readonly plain: boolean;
}
type Draw = (random: () => number) => Sample;

const TEXTS = ["", "a", "Ω\"q'", "x,y", "null", "{}", "line\nbreak", "𐍈"];
const NAMES = ["a", "B", "__proto__", "1", "0", "toString", "with space", 'quo"te', "ä"];

const SCALARS: readonly { readonly type: string; readonly draw: Draw }[] = [
  {
    type: "INTEGER",
    draw: (random) => {
      const n = String(Math.floor(random() * 2_000_000) - 1_000_000);
      return { sql: `${n}::integer`, json: n, plain: true };
    },
  },
  {
    type: "VARCHAR",
    draw: (random) => {
      const text = TEXTS[Math.floor(random() * TEXTS.length)]!;
      return { sql: literal(text), json: JSON.stringify(text), plain: true };
    },
  },
  {
    type: "BOOLEAN",
    draw: (random) => {
      const value = String(random() < 0.5);
      return { sql: value, json: value, plain: true };
    },
  },
];

/** A type that holds a tuple cannot be written, so that its values are neither cast, nor null, nor empty lists. */
type Kind = { readonly type: string | undefined; readonly draw: Draw };

const orNull = ({ type, draw }: Kind): Kind => ({
  type,
  draw: (random) =>
    type !== undefined && random() < 0.2 ? { sql: `null::${type}`, json: "null", plain: true } : draw(random),
});

function kindOf(random: () => number, depth: number): Kind {
  const kind = depth === 0 ? 0 : Math.floor(random() * 6);
  if (kind < 2) return orNull(SCALARS[Math.floor(random() * SCALARS.length)]!);
  const joined = (items: readonly Sample[], open: string, close: string, sql: string): Sample => ({
    sql,
    json: open + items.map(({ json }) => json).join(",") + close,
    plain: items.every(({ plain }) => plain),
  });
  if (kind === 2) {
    const inner = kindOf(random, depth - 1);
    const type = inner.type === undefined ? undefined : `${inner.type}[]`;
    return orNull({
      type,
      draw: (r) => {
        const count = Math.floor(r() * 3) + (type === undefined ? 1 : 0);
        const items = Array.from({ length: count }, () => inner.draw(r));
        const sql = `[${items.map((item) => item.sql).join(", ")}]`;
        return joined(items, "[", "]", type === undefined ? sql : `${sql}::${type}`);
      },
    });
  }
  if (kind === 3) {
    const inner = kindOf(random, depth - 1);
    const type = inner.type === undefined ? undefined : `MAP(VARCHAR, ${inner.type})`;
    return orNull({
      type,
      draw: (r) => {
        const keys = NAMES.filter((_, at) => at === 0 || r() < 0.3);
        const items = keys.map(() => inner.draw(r));
        const body = keys.map((key, at) => `${literal(key)}: ${items[at]!.sql}`).join(", ");
        const named = items.map((item, at) => ({
          ...item,
          json: `${JSON.stringify(keys[at])}:${item.json}`,
        }));
        return joined(named, "{", "}", `map {${body}}`);
      },
    });
  }
  const fields = Array.from({ length: 1 + Math.floor(random() * 3) }, () => kindOf(random, depth - 1));
  if (kind === 4) {
    return {
      type: undefined,
      draw: (r) => {
        const items = fields.map((field) => field.draw(r));
        const tuple = joined(items, "[", "]", `row(${items.map((item) => item.sql).join(", ")})`);
        return { ...tuple, plain: false };
      },
    };
  }
  const start = Math.floor(random() * (NAMES.length - fields.length));
  const names = NAMES.slice(start, start + fields.length).toReversed();
  const quoted = names.map(identifier);
  const type = fields.some((field) => field.type === undefined)
    ? undefined
    : `STRUCT(${quoted.map((name, at) => `${name} ${fields[at]!.type}`).join(", ")})`;
  return orNull({
    type,
    draw: (r) => {
      const items = fields.map((field) => field.draw(r));
      const named = items.map((item, at) => ({ ...item, json: `${JSON.stringify(names[at])}:${item.json}` }));
      const body = quoted.map((name, at) => `${name} := ${items[at]!.sql}`).join(", ");
      return joined(named, "{", "}", `struct_pack(${body})`);
    },
  });
}

async function encode(sql: string): Promise<string[]> {
  const result = await connection.stream(sql);
  const encoder = new RowEncoder(result.columnNames(), result.columnTypes(), "json", "exact");
  const rows: string[] = [];
  for (let chunk = await result.fetchChunk(); chunk !== null && chunk.rowCount > 0; ) {
    rows.push(encoder.rows(chunk));
    chunk = await result.fetchChunk();
  }
  return rows;
}

test("nested values of any shape are answered as written, and as the engine's own JSON has them", async () => {
  let tuples = 0;
  let compared = 0;
  await fc.assert(
    fc.asyncProperty(fc.integer(), async (seed) => {
      const generator = new Random(seed);
      const random = () => generator.next();
      const value = kindOf(random, 3).draw(random);
      const answer = await encode(`SELECT ${value.sql}`);
      expect(answer).toEqual([`[${value.json}]`]);
      if (!value.plain) {
        tuples++;
        return;
      }
      // The engine writes tuples as objects whose keys are all empty.
      const rows = await rowsOf(connection, `SELECT to_json(${value.sql})::VARCHAR`);
      expect(answer).toEqual([`[${rows[0]?.[0] ?? "null"}]`]);
      compared++;
    }),
    { numRuns: 300 },
  );
  expect(tuples).toBeGreaterThan(20);
  expect(compared).toBeGreaterThan(50);
});
