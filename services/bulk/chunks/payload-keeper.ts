import { type FileHandle, open, rm } from "node:fs/promises";
import { TributaryError } from "../../base/errors.js";
import { inGroups } from "../../base/in-groups.js";
import { uriOf } from "../../contracts/payload-reference.js";
import type { Offloaded } from "../../offload/offloaded.js";
import type { Aside, PayloadAside } from "./payloads-aside.js";

/** Payloads that are on their way to the store together: memory holds so many. */
const AT_ONCE = 4;
/** Looks at what lies there. */
const LOOKS_AT_ONCE = 16;

/**
 * Puts the payloads of a chunk into the object store before it is committed, and keeps for good what its rows name.
 * `path` is the file that they wait in, which is removed. Resolves to the positions of
 * rows whose payloads are not there.
 * Errors: TRB-STORE-FAILED, TRB-LAKE-CLOSED; TRB-SOURCE-READER for payloads that are not what the chunk's process said.
 */
export async function keepAside(
  offloaded: Offloaded,
  { payloads, elsewhere }: Aside,
  path: string,
): Promise<readonly string[]> {
  if (payloads.length > 0) {
    const file = await open(path, "r");
    try {
      await inGroups(payloads, AT_ONCE, (payload) => put(offloaded, file, payload));
    } finally {
      await file.close();
      await rm(path, { force: true });
    }
  }
  const uris = payloads.map(({ tenant, sha256 }) => uriOf(tenant, Buffer.from(sha256)));
  const found = await lookFor(offloaded, elsewhere);
  await offloaded.keepForGood([...uris, ...found.uris]);
  return found.missing;
}

/** Payloads that are in the store as rows refer to them, and the positions of rows whose payloads are not there. */
export async function lookFor(
  offloaded: Pick<Offloaded, "holds">,
  elsewhere: Aside["elsewhere"],
): Promise<{ readonly uris: readonly string[]; readonly missing: readonly string[] }> {
  const [uris, missing]: [string[], string[]] = [[], []];
  await inGroups(elsewhere, LOOKS_AT_ONCE, async ({ position, uri, sizeBytes, sha256 }) => {
    if (await offloaded.holds({ uri, sizeBytes, sha256: Buffer.from(sha256) })) uris.push(uri);
    else missing.push(position);
  });
  return { uris, missing };
}

async function put(offloaded: Offloaded, file: FileHandle, payload: PayloadAside): Promise<void> {
  const { tenant, sha256, sizeBytes, start } = payload;
  const bytes = Buffer.allocUnsafe(sizeBytes);
  let read = 0;
  while (read < sizeBytes) {
    const { bytesRead } = await file.read(bytes, read, sizeBytes - read, start + read);
    if (bytesRead === 0) break;
    read += bytesRead;
  }
  if (read === sizeBytes && (await offloaded.putAs(tenant, Buffer.from(sha256), bytes))) return;
  throw new TributaryError("TRB-SOURCE-READER");
}
