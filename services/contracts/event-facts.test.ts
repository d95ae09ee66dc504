import { expect, test } from "vitest";
import { encodeEvent } from "./encode-event.js";
import { EventFactsReader } from "./event-facts.js";

const event = (attributes: Record<string, string>) =>
  encodeEvent({
    tenantId: "acme",
    entityType: "scm.v1.File",
    entityId: "a/b",
    operation: 3,
    version: 7,
    attributes,
  });

test("entity and trace of an event that lies somewhere in a buffer", () => {
  const bytes = Buffer.concat([
    Buffer.from("???"),
    event({ producer: "x", traceparent: "00-0af7-01", tracestate12: "no" }),
    Buffer.from("!"),
  ]);
  const facts = new EventFactsReader().facts(bytes, 3, bytes.length - 1)!;
  const text = (from: number, to: number) => bytes.toString("utf8", from, to);
  expect(text(facts.tenantStart, facts.tenantEnd)).toBe("acme");
  expect(text(facts.typeStart, facts.typeEnd)).toBe("scm.v1.File");
  expect(text(facts.idStart, facts.idEnd)).toBe("a/b");
  expect(text(facts.traceparentStart, facts.traceparentEnd)).toBe("00-0af7-01");
});

test("an event without a trace has none of the one before it; what is no event has no facts", () => {
  const reader = new EventFactsReader();
  const traced = event({ traceparent: "t" });
  reader.facts(traced, 0, traced.length);
  const plain = event({ traceparenu: "t" });
  expect(reader.facts(plain, 0, plain.length)).toMatchObject({ traceparentStart: -1, traceparentEnd: -1 });
  expect(reader.facts(Buffer.from("nothing of ours"), 0, 15)).toBeUndefined();
});
