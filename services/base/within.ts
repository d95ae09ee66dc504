/**
 * Waits for `work`, but no longer than `ms` milliseconds: true when it has ended by then. Work that takes longer goes
 * on. Throws what `work` rejects with in that time; later, that is for its owner. The limit keeps no process alive.
 */
export async function within(ms: number, work: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const overdue = new Promise<boolean>((resolve) => {
    timer = setTimeout(resolve, ms, false).unref();
  });
  try {
    return await Promise.race([work.then(() => true), overdue]);
  } finally {
    clearTimeout(timer);
  }
}
