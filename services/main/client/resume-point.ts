import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { z } from "zod";
import type { InputFile, InputOffset } from "./ndjson-batches.js";

/** How far a file was published: everything before `offset` was answered. */
export interface ResumePoint {
  readonly offset: InputOffset;
  readonly accepted: number;
  readonly rejected: number;
}

const count = z.number().int().min(0);
const schema = z.object({
  format: z.literal(1),
  server: z.string(),
  size: count,
  modifiedMs: z.number(),
  head: z.string(),
  lines: count,
  bytes: count,
  accepted: count,
  rejected: count,
});

const SAVE_MS = 500;

/**
 * Keeps the resume point of one file and one server in a small file beside it. A point of another server, or of a
 * file that has changed since, does not count. Where it cannot be written, there is none: publishing goes on.
 */
export class ResumeFile {
  readonly path: string;
  private readonly input: InputFile;
  private readonly server: string;
  private savedAt = performance.now();
  private pending: ResumePoint | undefined;
  private writing: Promise<void> = Promise.resolve();
  private usable = true;

  constructor(path: string, input: InputFile, server: string) {
    this.path = path;
    this.input = input;
    this.server = server;
  }

  async load(): Promise<ResumePoint | undefined> {
    let content: unknown;
    try {
      content = JSON.parse(await readFile(this.path, "utf8"));
    } catch {
      return undefined;
    }
    const parsed = schema.safeParse(content);
    if (!parsed.success) return undefined;
    const { server, size, modifiedMs, head, lines, bytes, accepted, rejected } = parsed.data;
    const { size: nowSize, modifiedMs: nowModified, head: nowHead } = this.input;
    const same = server === this.server && size === nowSize && modifiedMs === nowModified && head === nowHead;
    return same ? { offset: { lines, bytes }, accepted, rejected } : undefined;
  }

  /** Notes the point, and writes it now and then. */
  reached(point: ResumePoint): void {
    this.pending = point;
    const now = performance.now();
    if (now - this.savedAt < SAVE_MS) return;
    this.savedAt = now;
    void this.save();
  }

  /** Writes the latest point. False when there is none to resume from. */
  async save(): Promise<boolean> {
    const write = this.writing.then(() => this.write());
    this.writing = write;
    await write;
    return this.usable;
  }

  async remove(): Promise<void> {
    await this.writing;
    await rm(this.path, { force: true });
  }

  private async write(): Promise<void> {
    const point = this.pending;
    if (point === undefined || !this.usable) return;
    this.pending = undefined;
    const { size, modifiedMs, head } = this.input;
    const { offset, accepted, rejected } = point;
    const content = {
      format: 1,
      server: this.server,
      size,
      modifiedMs,
      head,
      ...offset,
      accepted,
      rejected,
    };
    const draft = `${this.path}.${process.pid}`;
    try {
      await writeFile(draft, `${JSON.stringify(content)}\n`);
      await rename(draft, this.path);
    } catch {
      this.usable = false;
      await rm(draft, { force: true }).catch(() => undefined);
    }
  }
}
