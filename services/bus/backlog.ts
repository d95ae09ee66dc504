/** Parts of the limit in which what waits is remembered and forgotten. */
const PARTS = 256;

interface Part {
  bytes: number;
  readonly byShare: Map<string, number>;
}

/**
 * Whose events wait in one stream for ingest. Each share may have as many bytes there as are still free below the limit:
 * one that floods alone stops at half of it, two at a third each, and who has nothing there is let in. What waits
 * from before this process belongs to nobody.
 */
export class Backlog {
  /** Oldest first. */
  private readonly parts: Part[] = [];
  private readonly byShare = new Map<string, number>();
  private bytes = 0;

  /** `measured` tells the bytes that wait in the stream. */
  constructor(
    private readonly maxBytes: number,
    private readonly measured: () => number,
  ) {}

  /** Why this share has to wait for what waits to land, its own or everybody's; undefined when it need not. */
  refusal(share: string): string | undefined {
    const waiting = this.measured();
    if (waiting > this.maxBytes) return "ingest is behind";
    this.forget(waiting);
    if ((this.byShare.get(share) ?? 0) <= this.maxBytes - waiting) return undefined;
    return "your events before these wait to land";
  }

  /** To be told in the order in which events were appended. */
  appended(share: string, bytes: number): void {
    let part = this.parts.at(-1);
    if (part === undefined || part.bytes >= this.maxBytes / PARTS) {
      part = { bytes: 0, byShare: new Map() };
      this.parts.push(part);
    }
    part.bytes += bytes;
    part.byShare.set(share, (part.byShare.get(share) ?? 0) + bytes);
    this.byShare.set(share, (this.byShare.get(share) ?? 0) + bytes);
    this.bytes += bytes;
  }

  /** The stream is read in its order: what does not wait any more is what came first. */
  private forget(waiting: number): void {
    for (;;) {
      const oldest = this.parts[0];
      if (oldest === undefined || this.bytes - oldest.bytes < waiting) return;
      this.parts.shift();
      this.bytes -= oldest.bytes;
      for (const [share, bytes] of oldest.byShare) {
        const left = this.byShare.get(share)! - bytes;
        if (left === 0) this.byShare.delete(share);
        else this.byShare.set(share, left);
      }
    }
  }
}
