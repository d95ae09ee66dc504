import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { TributaryError } from "../../base/errors.js";
import { domainOf } from "../../stream/domains.js";
import { OpenStreams, typesOfDomains } from "./streams.js";

const quiet = { info: () => undefined, error: () => undefined };

/** Streams by domain; opening one of `down` fails. */
function streams(down: Set<string>, broken = new Set<string>()) {
  const closed: string[] = [];
  const opened: string[] = [];
  const open = new OpenStreams(
    { nameOf: domainOf },
    async (name) => {
      if (broken.has(name)) throw new TributaryError("TRB-CONFIG", "no such topic");
      if (down.has(name)) throw new TributaryError("TRB-BUS-STREAM-DOWN");
      opened.push(name);
      return { close: async () => void closed.push(name) };
    },
    quiet,
  );
  return { open, opened, closed };
}

test("one that is down holds up no other, and opens once it is there", async () => {
  const down = new Set(["scm"]);
  const { open, closed } = streams(down);
  await open.want(["scm.v1.File", "tracker.v1.Issue", "tracker.v1.Board"]);
  expect([...open.states]).toEqual([
    ["scm", "down"],
    ["tracker", "open"],
  ]);
  expect(open.stream("scm")).toBeUndefined();
  down.clear();
  while (open.stream("scm") === undefined) await sleep(5);
  await open.close();
  expect(closed.sort()).toEqual(["scm", "tracker"]);
});

test("one that is wrongly configured ends the start; found later it leaves the others", async () => {
  const { open } = streams(new Set(), new Set(["scm"]));
  await expect(open.want(["scm.v1.File"])).rejects.toMatchObject({ code: "TRB-CONFIG" });
  const later = streams(new Set(), new Set(["scm"]));
  await later.open.want(["tracker.v1.Issue"]);
  later.open.wantSoon(["scm.v1.File", "tracker.v1.Issue"]);
  await sleep(1);
  expect([later.open.stream("scm"), later.open.states.get("tracker")]).toEqual([undefined, "open"]);
  expect(later.opened).toEqual(["tracker"]);
  await later.open.close();
});

test("what opens after the end is closed at once", async () => {
  const down = new Set(["scm"]);
  const { open, opened, closed } = streams(down);
  await open.want(["scm.v1.File"]);
  const ended = open.close();
  down.clear();
  await ended;
  await sleep(300);
  expect(closed).toEqual(opened);
});

test("one domain alone is landed where it has a stream of its own, and nowhere else", () => {
  const types = ["scm.v1.Commit", "scm.v1.File", "tracker.v1.Issue"];
  const own = { nameOf: domainOf };
  expect(typesOfDomains(own, types, [])).toEqual(types);
  expect(typesOfDomains(own, types, ["scm"])).toEqual(["scm.v1.Commit", "scm.v1.File"]);
  expect(() => typesOfDomains(own, types, ["smc"])).toThrow(/expected some of scm, tracker, found smc/);
  const shared = { nameOf: () => "all" };
  expect(() => typesOfDomains(shared, types, ["scm"])).toThrow(/share no stream/);
  expect(typesOfDomains(shared, types, ["scm", "tracker"])).toEqual(types);
});
