import { grouped, printable } from "../../base/in-words.js";
import type { BootstrapCheck } from "../../bulk/bootstrap/bootstrap-check.js";
import { textTable } from "../terminal/text-table.js";

/** What a dry run finds, for people. */
export function checkText(check: BootstrapCheck): string {
  const { source, format, files, bytes, rows, rowsExact, sample, rejects, preview, leftover } = check;
  const size = `${grouped(files)} ${files === 1 ? "file" : "files"}, ${grouped(bytes)} bytes`;
  const count = rows === null ? "" : `, ${rowsExact ? "" : "about "}${grouped(rows)} rows`;
  const parts = [printable(`${source}: ${format}, ${size}${count}`)];
  parts.push(`of the first rows ${grouped(sample.rows)} would land, ${grouped(sample.rejected)} be rejected`);
  if (preview.length > 0) {
    const cells = preview.map((row) => [
      row.tenant,
      row.entityId,
      row.operation,
      row.version,
      row.occurredAt,
      row.payload,
    ]);
    parts.push(textTable(["tenant", "entity", "operation", "version", "occurred at", "payload"], cells));
  }
  if (rejects.length > 0) {
    const cells = rejects.map(({ rows: some, code, reason, file, row }) => [
      some,
      code,
      reason,
      `${file}:${row}`,
    ]);
    parts.push(textTable(["rows", "code", "reason", "first at"], cells, { maxWidth: 80 }));
  }
  parts.push(textTable(["versions of", "half up to", "most up to", "rows"], versionRows(check)));
  for (const [name, missed] of Object.entries(leftover ?? {})) {
    if (missed.length > 0) parts.push(printable(`${name} that nothing is mapped to: ${missed.join(", ")}`));
  }
  for (const note of check.notes) parts.push(printable(`note: ${note}`));
  for (const { code, message } of check.refusals) parts.push(printable(`refused: ${code}: ${message}`));
  if (check.refusals.length === 0) parts.push("it would begin");
  return parts.join("\n\n");
}

const versionRows = ({ versions }: BootstrapCheck): unknown[][] =>
  versions.flatMap(({ entityType, export: exported, live }) =>
    [
      { of: `${entityType}, export`, spread: exported },
      { of: `${entityType}, live`, spread: live },
    ].map(({ of, spread }) => [of, spread?.median, spread?.high, spread?.rows ?? 0]),
  );
