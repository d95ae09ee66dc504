import { userInfo } from "node:os";

/** Who sits at this machine: who can read the lake's folder, or has the store's credentials, needs no token. */
export function localUser(): string {
  try {
    return `local:${userInfo().username}`;
  } catch {
    // A user that no account is of, as in containers.
    return `local:${process.getuid?.() ?? "unknown"}`;
  }
}
