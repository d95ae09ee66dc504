/**
 * A product domain is the first part of its proto package: `scm` of `scm.v1.File`. Where the infrastructure has streams
 * to give, each domain has its own, so that one domain's backlog or throttling delays no other.
 */
export const domainOf = (entityType: string): string => {
  const end = entityType.indexOf(".");
  return end < 0 ? NO_PACKAGE : entityType.slice(0, end);
};

/** Messages without a package have a domain, too. */
const NO_PACKAGE = "default";

/** Streams by what they are called in the configuration and in metrics; several domains may share one. */
export interface Streams<S> {
  nameOf(entityType: string): string;
  /** Undefined while it is not open: events of its domains cannot be taken, or read. */
  stream(name: string): S | undefined;
}
