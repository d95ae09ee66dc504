import { userInfo } from "node:os";
import type { Actor } from "../../status/audit.js";

/** Who runs this command, as the audit names them. Who can read the data folder or its store is an operator. */
export function localUser(): Actor {
  return { by: `local:${nameOf()}`, via: "cli" };
}

function nameOf(): string {
  try {
    return userInfo().username;
  } catch {
    // A number without an account, as containers have it.
    return String(process.getuid?.() ?? "unknown");
  }
}
