/** What is told of a failure, beside its message. */
export interface CodeEntry {
  readonly status: number;
  /** Whether sending the same thing again can help. */
  readonly retry: boolean;
  readonly summary: string;
  /** Written for the person who reads it. */
  readonly remedy: string;
}

export const entry = (status: number, retry: boolean, summary: string, remedy: string): CodeEntry => ({
  status,
  retry,
  summary,
  remedy,
});
