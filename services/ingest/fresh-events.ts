import type { StreamBatch } from "../stream/change-stream.js";

/** What of a read is new, a stream may deliver events again; and where it ends in each partition. */
export function fresh(
  read: StreamBatch,
  reached: ReadonlyMap<string, string>,
): { readonly read: StreamBatch; readonly end: ReadonlyMap<string, string> } {
  const { names, partitions, positions } = read;
  const last = names.map((name) => reached.get(name) ?? "");
  const kept: number[] = [];
  for (let i = 0; i < read.count; i++) {
    const partition = partitions[i]!;
    if (positions[i]! <= last[partition]!) continue;
    last[partition] = positions[i]!;
    kept.push(i);
  }
  const end = new Map<string, string>();
  for (const [partition, name] of names.entries()) {
    if (last[partition] !== (reached.get(name) ?? "")) end.set(name, last[partition]!);
  }
  if (kept.length === read.count) return { read, end };
  return {
    read: {
      ...read,
      count: kept.length,
      starts: Uint32Array.from(kept, (i) => read.starts[i]!),
      ends: Uint32Array.from(kept, (i) => read.ends[i]!),
      partitions: Uint16Array.from(kept, (i) => partitions[i]!),
      receivedAt: Float64Array.from(kept, (i) => read.receivedAt[i]!),
      positions: kept.map((i) => positions[i]!),
    },
    end,
  };
}
