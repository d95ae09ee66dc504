import { duration, grouped } from "../../base/in-words.js";

/** How far something is. */
export interface Progress {
  /** From 0 to 1; undefined when the end is not known. */
  readonly fraction?: number | undefined;
  /** So far, of this run. */
  readonly count: number;
}

/** What is written to; standard error in earnest. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

const REDRAW_MS = 100;
/** Where there is no terminal, a line now and then. */
const LINE_MS = 5_000;

/** A bar with rate and remaining time on a terminal; elsewhere plain lines, few of them. */
export class ProgressBar {
  private readonly stream: ProgressStream;
  private readonly label: string;
  private readonly now: () => number;
  private readonly live: boolean;
  private readonly started: number;
  private shown: number;
  private last: Progress = { count: 0 };

  /** `unit` is what is counted. */
  constructor(
    stream: ProgressStream,
    label: string,
    private readonly unit = "events",
    now: () => number = () => performance.now(),
  ) {
    this.stream = stream;
    this.label = label;
    this.now = now;
    this.live = stream.isTTY === true && process.env.TERM !== "dumb";
    this.started = now();
    this.shown = this.live ? Number.NEGATIVE_INFINITY : this.started;
  }

  update(progress: Progress): void {
    this.last = progress;
    const now = this.now();
    if (now - this.shown < (this.live ? REDRAW_MS : LINE_MS)) return;
    this.shown = now;
    this.draw(now);
  }

  /** On a terminal the bar stays as it ended, and the cursor goes on below it. */
  end(): void {
    if (!this.live) return;
    this.draw(this.now());
    this.stream.write("\n");
  }

  private draw(now: number): void {
    const { fraction, count } = this.last;
    const elapsed = now - this.started;
    const rate = elapsed > 0 ? Math.round((count / elapsed) * 1000) : 0;
    const parts = [`${grouped(count)} ${this.unit}`, `${grouped(rate)}/s`];
    if (fraction !== undefined && fraction < 1) {
      if (fraction > 0 && elapsed > 1000)
        parts.push(`${duration((elapsed / fraction) * (1 - fraction))} left`);
    } else parts.push(duration(elapsed));
    if (fraction === undefined) {
      this.print([this.label, ...parts].join("  "));
      return;
    }
    const share = Math.min(1, Math.max(0, fraction));
    const percent = `${String(Math.floor(share * 100)).padStart(3)} %`;
    const rest = parts.join("  ");
    const room = (this.stream.columns ?? 80) - this.label.length - percent.length - rest.length - 7;
    const cells = this.live ? Math.min(30, room) : 0;
    const filled = Math.round(share * cells);
    const bar = cells < 5 ? "" : `${"█".repeat(filled)}${"░".repeat(cells - filled)}  `;
    this.print(`${this.label}  ${bar}${percent}  ${rest}`);
  }

  private print(text: string): void {
    if (!this.live) {
      this.stream.write(`${text}\n`);
      return;
    }
    // A line longer than the terminal would wrap, and "\r" could not take it back.
    const line = text.slice(0, Math.max(1, (this.stream.columns ?? 80) - 1));
    this.stream.write(`\r${line}\x1b[K`);
  }
}
