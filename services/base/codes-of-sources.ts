import { type CodeEntry, entry } from "./code-entry.js";

/** Failures of what is read in bulk: of a source as a whole, of its files, of one row. */
export const SOURCE_CODES = {
  // --- sources and their files -----------------------------------------------------------------------------
  "TRB-SOURCE-ROOT": entry(
    404,
    false,
    "no such root of sources",
    "name one of bulk.sources, and what lies below it: <root>/<path>",
  ),
  "TRB-SOURCE-PATH": entry(
    400,
    false,
    "the path of a source is not one that is read",
    "give names with one / between them, without . and .., links, backslashes and control characters",
  ),
  "TRB-SOURCE-LINK": entry(
    400,
    false,
    "a source holds a link, or what is neither a file nor a folder",
    "put copies of the files in its place; links are not followed",
  ),
  "TRB-SOURCE-LAKE": entry(
    400,
    false,
    "a source lies in the lake's own place, or has it inside",
    "export to another folder, bucket or prefix",
  ),
  "TRB-SOURCE-EMPTY": entry(
    404,
    false,
    "a source holds no file",
    "check the path; the export may have failed",
  ),
  "TRB-SOURCE-FORMAT": entry(
    400,
    false,
    "the format of a source's files cannot be told, or is another than it was said to be",
    "say which format it is, and keep files of other formats elsewhere",
  ),
  "TRB-SOURCE-CHANGED": entry(
    409,
    false,
    "a file of a source has changed, or is gone, since the source was listed",
    "let the export end first, then start a job of another id; what verifies needs the files as they were brought in",
  ),
  "TRB-SOURCE-DAMAGED": entry(
    422,
    false,
    "a file of a source is cut short or damaged",
    "export the file again, or start a job without it",
  ),
  "TRB-SOURCE-UNREADABLE": entry(
    503,
    true,
    "a file of a source, or the place where it lies, cannot be read",
    "check rights and the network",
  ),
  "TRB-SOURCE-SCRATCH": entry(
    507,
    false,
    "a file of a source finds no room on the local disk",
    "raise bulk.scratchBytes beyond the largest file, or export smaller files",
  ),
  "TRB-SOURCE-MEMORY": entry(
    422,
    false,
    "a file of a source asks for more memory than its reader may have",
    "raise bulk.readerMemoryBytes, or export with smaller row groups",
  ),
  "TRB-SOURCE-STALLED": entry(
    503,
    true,
    "the reader of a source got nowhere for too long and was killed",
    "a retry may help; else look at the file named, or raise bulk.readerIdleMs",
  ),
  "TRB-SOURCE-READER": entry(503, true, "the reader of a source was killed", "a retry may help"),
  // --- rows of a source -------------------------------------------------------------------------------------
  "TRB-ROW-LENGTH": entry(
    422,
    false,
    "a record is longer than bulk.maxRecordBytes",
    "raise the limit, or mend the record: a line break or a quote may be missing",
  ),
  "TRB-ROW-UTF8": entry(422, false, "a record is not UTF-8", "export as UTF-8"),
  "TRB-ROW-JSON": entry(422, false, "a line is no JSON object", "mend the line"),
  "TRB-ROW-COLUMNS": entry(
    422,
    false,
    "a record has more or fewer fields than there are columns",
    "mend the record, or name the delimiter",
  ),
  "TRB-ROW-QUOTE": entry(
    422,
    false,
    "a record's quotes do not fit together",
    'put the whole field in quotes, and double those inside: "a ""b"" c"',
  ),
  "TRB-ROW-SNAPSHOT": entry(
    422,
    false,
    "a line is not a row that Debezium read for a snapshot",
    'keep only those with op "r" and the row in after; later changes come along the stream',
  ),
} as const satisfies Record<string, CodeEntry>;
