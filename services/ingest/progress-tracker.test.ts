import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ProgressTracker } from "./progress-tracker.js";

const ends = (positions: Record<string, string>) => new Map(Object.entries(positions));

describe("the low-water record follows what has landed", () => {
  it("a read that is done waits for the one before it", () => {
    const progress = new ProgressTracker();
    const first = progress.begin(ends({ "0": "1" }));
    progress.hold(first);
    progress.seal(first);
    const second = progress.begin(ends({ "0": "2" }));
    progress.seal(second);
    expect(progress.advance()).toBeUndefined();
    progress.release(first);
    expect(progress.advance()).toEqual(ends({ "0": "2" }));
    expect(progress.advance()).toBeUndefined();
  });

  it("partitions that the last read did not meet keep what earlier reads have told", () => {
    const progress = new ProgressTracker();
    for (const end of [ends({ "0": "5", "1": "7" }), ends({ "1": "8" }), ends({ "2": "1" })]) {
      progress.seal(progress.begin(end));
    }
    expect(progress.advance()).toEqual(ends({ "0": "5", "1": "8", "2": "1" }));
    progress.seal(progress.begin(ends({ "0": "6" })));
    expect(progress.advance()).toEqual(ends({ "0": "6", "1": "8", "2": "1" }));
  });

  it("a partition does not wait for a read that had nothing of it", () => {
    const progress = new ProgressTracker();
    const first = progress.begin(ends({ "0": "1" }));
    progress.hold(first);
    progress.seal(first);
    progress.seal(progress.begin(ends({ "1": "1" })));
    expect(progress.advance()).toEqual(ends({ "1": "1" }));
    expect([progress.awaits(["0", "1"]), progress.awaits(["1", "2"])]).toEqual([true, false]);
    progress.release(first);
    expect(progress.awaits(["0"])).toBe(false);
    expect(progress.advance()).toEqual(ends({ "0": "1", "1": "1" }));
  });

  it("a partition that went is not told of any more, nor by what was still on its way when it comes back", () => {
    const progress = new ProgressTracker();
    progress.seal(progress.begin(ends({ "0": "1", "1": "1" })));
    const late = progress.begin(ends({ "0": "2", "1": "2" }));
    progress.hold(late);
    progress.seal(late);
    progress.forget(["0"]);
    expect(progress.advance()).toEqual(ends({ "1": "1" }));
    expect(progress.awaits(["0"])).toBe(false);
    progress.seal(progress.begin(ends({ "0": "9" })));
    expect(progress.advance()).toEqual(ends({ "0": "9", "1": "1" }));
    progress.release(late);
    expect(progress.advance()).toEqual(ends({ "0": "9", "1": "2" }));
  });

  it("never runs ahead of an open read, and ends where everything ends, in whatever order parts land", () => {
    const parts = fc.array(fc.array(fc.nat(2), { maxLength: 3 }), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(parts, fc.infiniteStream(fc.nat()), (reads, picks) => {
        const progress = new ProgressTracker();
        const last = new Map<string, string>();
        const open: number[] = [];
        for (const [index, partitions] of reads.entries()) {
          const end = new Map(
            partitions.map((partition) => [String(partition), String(index).padStart(4, "0")]),
          );
          const read = progress.begin(end);
          for (const [partition, position] of end) last.set(partition, position);
          for (const _ of partitions) {
            progress.hold(read);
            open.push(read);
          }
          progress.seal(read);
        }
        let told = new Map<string, string>();
        const look = () => {
          told = new Map(progress.advance() ?? told);
          for (const [partition, position] of told) {
            const of = open.filter((read) => reads[read]!.includes(Number(partition)));
            expect(Number(position)).toBeLessThan(Math.min(...of, reads.length));
          }
        };
        look();
        while (open.length > 0) {
          const [read] = open.splice(picks.next().value! % open.length, 1);
          progress.release(read!);
          look();
        }
        expect(told).toEqual(last);
      }),
    );
  });
});
