import { hasCode } from "../../base/errors.js";
import { createDurably, nodeFiles } from "../../base/files.js";
import { closedPath } from "./folder.js";
import { type EmbeddedLogOptions, EmbeddedLogWriter } from "./writer.js";

/**
 * Ends the log for good: what was acknowledged stays and can be read, and no writer opens it any more. A writer that
 * runs keeps it from being closed, and one that does not know of the lock is fenced.
 * Errors: those of opening a writer, TRB-STREAM-LOCKED among them.
 */
export async function closeLog(options: EmbeddedLogOptions): Promise<void> {
  const files = options.files ?? nodeFiles;
  let writer: EmbeddedLogWriter;
  try {
    writer = await EmbeddedLogWriter.open(options);
  } catch (error) {
    if (hasCode(error, "TRB-STREAM-CLOSED")) return;
    throw error;
  }
  try {
    const bytes = Buffer.from(`${JSON.stringify({ closedAt: new Date().toISOString() })}\n`);
    await createDurably(files, closedPath(options.folder), bytes);
  } finally {
    await writer.close();
  }
}
