import { createHash } from "node:crypto";
import { ByteTable } from "../contracts/byte-table.js";
import { isTenantId } from "../contracts/envelope.js";

export const ROLES = ["producer", "analyst", "operator"] as const;
export type Role = (typeof ROLES)[number];

/** What a token lets its bearer do, as its claims say. */
export interface Claims {
  readonly role: Role;
  /** Tenant ids, or "*" for all. */
  readonly tenants: "*" | readonly string[];
  /** Producers: the entity types they may publish; absent means all. */
  readonly entityTypes?: readonly string[] | undefined;
  /** Analysts: names of row predicates that every query of theirs must be held to. */
  readonly scope?: readonly string[] | undefined;
}

/** A verified token. Immutable; shared by all requests that carry the token. */
export class Grant {
  readonly subject: string;
  readonly role: Role;
  /** "*", or the tenant ids in the token's order. */
  readonly tenants: "*" | readonly string[];
  /** Undefined when there is none; whoever answers queries must enforce every name in it, or refuse. */
  readonly scope: readonly string[] | undefined;
  /** Whose share of what is shared by tenants: those it is for. */
  readonly tenantsShare: string;
  /** Whose share of what is shared by producers. Subjects alone would not do: many are left as they are by default. */
  readonly bearerShare: string;
  private readonly tenantBytes: ByteTable<true> | undefined;
  /** Those that a producer may publish; undefined means all. */
  readonly entityTypes: ReadonlySet<string> | undefined;

  constructor(subject: string, claims: Claims) {
    this.subject = subject;
    this.role = claims.role;
    this.tenants = claims.tenants;
    this.scope = claims.scope;
    this.tenantsShare = claims.tenants === "*" ? "*" : claims.tenants.join("\n");
    // It goes into tickets, which are handed on: names of tenants do not.
    this.bearerShare = createHash("sha256").update(`${subject}\n${this.tenantsShare}`).digest("base64url");
    this.entityTypes = claims.entityTypes && new Set(claims.entityTypes);
    if (claims.tenants !== "*") {
      this.tenantBytes = new ByteTable(claims.tenants.length);
      for (const tenant of new Set(claims.tenants)) {
        const bytes = Buffer.from(tenant);
        this.tenantBytes.add(bytes, 0, bytes.length, true);
      }
    }
  }

  allowsTenant(tenant: string): boolean {
    return this.tenants === "*" ? isTenantId(tenant) : this.tenants.includes(tenant);
  }

  /** The same for a tenant id that was already found to be one, where it lies in a buffer. */
  allowsTenantBytes(bytes: Uint8Array, start: number, end: number): boolean {
    return this.tenantBytes === undefined || this.tenantBytes.get(bytes, start, end) === true;
  }

  allowsEntityType(entityType: string): boolean {
    return this.entityTypes === undefined || this.entityTypes.has(entityType);
  }
}

/** The claims of a token's body; undefined when they have another shape. Unknown claims are ignored. */
export function readClaims(body: Readonly<Record<string, unknown>>): Claims | undefined {
  const { role, tenants, entity_types: entityTypes, scope } = body;
  if (!isRole(role)) return undefined;
  if (tenants !== "*" && !(isNames(tenants) && tenants.length > 0 && tenants.every(isTenantId)))
    return undefined;
  if (entityTypes !== undefined && !isNames(entityTypes)) return undefined;
  if (scope !== undefined && !isNames(scope)) return undefined;
  return { role, tenants, entityTypes, scope };
}

const isRole = (value: unknown): value is Role => ROLES.some((role) => role === value);

const isNames = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((item) => typeof item === "string" && item !== "");
