/** Runs `use` with something that can be used until it ends, and returns what it does. */
export type Lend<L> = <T>(use: (lent: L) => Promise<T>) => Promise<T>;

/** Runs `use` with what all of `lenders` lend, in their order. */
export async function withAll<L, T>(
  lenders: readonly Lend<L>[],
  use: (lent: readonly L[]) => Promise<T>,
): Promise<T> {
  const [first, ...rest] = lenders;
  if (first === undefined) return use([]);
  return first((lent) => withAll(rest, (others) => use([lent, ...others])));
}
