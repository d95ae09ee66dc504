/** Runs `each` for all, `atOnce` at a time: a group begins when the one before has ended. Results in their order. */
export async function inGroups<T, R>(
  all: readonly T[],
  atOnce: number,
  each: (one: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = [];
  for (let at = 0; at < all.length; at += atOnce) {
    results.push(...(await Promise.all(all.slice(at, at + atOnce).map(each))));
  }
  return results;
}
