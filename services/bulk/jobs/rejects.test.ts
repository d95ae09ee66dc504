import { afterEach, expect, test } from "vitest";
import { Lake } from "../../../test/support/lake.js";
import type { Reject } from "../../sources/formats.js";
import { JobRejects, readRejects } from "./rejects.js";

let lake: Lake;
afterEach(() => lake.close());

const reject = (row: number, more: Partial<Reject> = {}): Reject => ({
  row,
  offset: undefined,
  code: "TRB-EVENT-TENANT",
  message: "tenant: expected one",
  bytes: Buffer.from(`{"row":${row}}`),
  ...more,
});

test("rejects are kept once, however often they are told, and read page by page in their order", async () => {
  lake = await Lake.create();
  const { context } = lake;
  expect(await readRejects(context, "j", { limit: 5 })).toEqual({ rejects: [], next: undefined });
  const [one, two] = [await JobRejects.open(context, "j"), await JobRejects.open(context, "j")];
  const file = (number: number, part?: string) => ({
    number,
    shown: `exports/${number}.csv`,
    ...(part === undefined ? {} : { part }),
  });
  const long = 2 ** 40 + 7;
  const first = [reject(9, { offset: long, bytes: Buffer.from([0, 0xff, 10]) }), reject(3)];
  await one.keep(file(0), first);
  // Another run tells the same and more: it was killed before its chunk had landed.
  await two.keep(file(0), [...first, reject(long)]);
  await one.keep(file(0), first);
  await one.keep(file(1), [reject(0)]);
  // Another part of the source begins at its first file again.
  await two.keep(file(0, "1"), [reject(4)]);
  expect((await JobRejects.open(context, "j")).count).toBe(5);
  const pages: number[] = [];
  const all: Awaited<ReturnType<typeof readRejects>>["rejects"][number][] = [];
  let after: string | undefined;
  do {
    const page = await readRejects(context, "j", { limit: 2, ...(after === undefined ? {} : { after }) });
    pages.push(page.rejects.length);
    all.push(...page.rejects);
    after = page.next;
  } while (after !== undefined);
  expect(pages).toEqual([2, 2, 1]);
  expect(all.map(({ source, row }) => `${source} ${row}`)).toEqual([
    "exports/0.csv 3",
    "exports/0.csv 9",
    `exports/0.csv ${long}`,
    "exports/1.csv 0",
    "exports/0.csv 4",
  ]);
  expect(all[1]).toMatchObject({ offset: long, code: "TRB-EVENT-TENANT", message: "tenant: expected one" });
  expect([...all[1]!.bytes]).toEqual([0, 0xff, 10]);
  expect(all[0]!.offset).toBeUndefined();
  expect(all[0]!.rejectedAt).toMatch(/^20\d\d-.*Z$/);
});

test("what is rejected only by a later run, before what was kept already, is kept too, and once", async () => {
  lake = await Lake.create();
  const { context } = lake;
  const file = { number: 0, shown: "exports/0.csv" };
  const [one, two] = [await JobRejects.open(context, "j"), await JobRejects.open(context, "j")];
  await one.keep(file, [reject(9)]);
  // Its chunk had not landed; a descriptor was changed, say, before it was made again.
  await Promise.all([one.keep(file, [reject(3), reject(9)]), two.keep(file, [reject(9), reject(3)])]);
  await two.keep(file, [reject(4), reject(3), reject(9)]);
  await one.keep(file, [reject(9), reject(10)]);
  await one.keep({ ...file, number: 1 }, [reject(0)]);
  const { rejects } = await readRejects(context, "j", { limit: 50 });
  expect(rejects.map(({ row }) => row)).toEqual([3, 4, 9, 10, 0]);
});
