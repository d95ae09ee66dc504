import type { DuckDBBlobValue, DuckDBConnection, DuckDBDataChunk } from "@duckdb/node-api";
import { chunksOf, literal } from "../base/duckdb.js";
import { assert } from "../base/errors.js";
import type { DeltaTable } from "./delta-table.js";
import type { EntityKeys } from "./entity-keys.js";
import { KeyIndex } from "./key-index.js";
import {
  CONTENT_HI,
  CONTENT_LO,
  compareOrder,
  FILE_SHIFT,
  FLAGS,
  MAX_FILES,
  OCCURRED_HI,
  OCCURRED_LO,
  OPERATION_MASK,
  ROW,
  TOMBSTONE_BIT,
  VERSION_HI,
  VERSION_LO,
  WORDS,
} from "./order.js";
import { withFiles } from "./scan.js";
import type { StagedFile } from "./staging.js";
import type { TableFile } from "./types.js";

/** Records of the rows of one file, to be put in the index once the file is part of the table. */
export interface Relocation {
  readonly path: string;
  readonly records: Uint32Array;
}

/** What a commit of this process did to where entities stand. */
export interface Applied {
  /** The version it was made for, and its own. */
  readonly from: number;
  readonly version: number;
  /** Files in which no entity stands any more. */
  readonly gone?: readonly string[];
  /** Records of an upsert that now stand in a new file, by ordinal, in the file's order. */
  readonly placed?: readonly Placement[];
  /** A compaction: entities that stood in one of `sources` stand where `relocation` says. */
  readonly moved?: { readonly relocation: Relocation | undefined; readonly sources: readonly TableFile[] };
}

export interface Placement {
  readonly records: Uint32Array;
  readonly ords: readonly number[];
  /** Path of the file, as in its add. */
  readonly path: string;
  readonly tombstones: boolean;
}

/** Standing records of a batch: offsets[i] is the word offset of record i's entity in `records`, or -1. */
export interface Standing {
  readonly records: Uint32Array;
  readonly offsets: Int32Array;
}

const LOW = 0xffffffff;
const ORDER_SELECT = `
  (f._tributary_version & ${LOW})::UINTEGER, ((f._tributary_version >> 32) & ${LOW})::UINTEGER,
  f._tributary_operation::UTINYINT,
  (f._tributary_hash & ${LOW})::UINTEGER, ((f._tributary_hash >> 32) & ${LOW})::UINTEGER,
  (epoch_us(f._tributary_occurred_at) & ${LOW})::UINTEGER,
  ((epoch_us(f._tributary_occurred_at) >> 32) & ${LOW})::UINTEGER,
  f.file_row_number::UINTEGER`;

/**
 * Finds the standing record (row or tombstone) of entities: in the key index where it fits its memory budget, else by
 * a semi-join of the batch's keys with the table's key columns. Superseded rows need no masks here: of all rows an
 * entity ever had, those that are left in files, the greatest is the standing one.
 */
export class EntityLocator {
  private index: KeyIndex | undefined;
  /** Version of the table that the index describes. */
  private version = -1;
  /** Files that records point into, by ordinal; ordinals of files that are gone are used again. */
  private paths: string[] = [];
  private ordinalOf = new Map<string, number>();
  private free: number[] = [];

  constructor(
    private readonly table: DeltaTable,
    private readonly budgetBytes: number,
    private readonly keys: EntityKeys,
  ) {}

  /** Drops the index; the next batch reads the table again. */
  forget(): void {
    this.index = undefined;
    this.paths = [];
    this.ordinalOf = new Map();
    this.free = [];
  }

  /** Brings the index up to a commit. Without this call the index is worthless and forgotten, as after a foreign commit. */
  applied({ from, version, gone = [], placed = [], moved }: Applied): void {
    if (this.version !== from) return;
    this.version = version;
    this.release(gone);
    for (const placement of placed) this.place(placement);
    if (moved !== undefined) this.move(moved.relocation, moved.sources);
  }

  get indexedKeys(): number | undefined {
    return this.index?.size;
  }

  /** Path of the file with this ordinal. */
  fileOf(ordinal: number): string {
    return this.paths[ordinal]!;
  }

  private ordinal(path: string): number {
    let ordinal = this.ordinalOf.get(path);
    if (ordinal === undefined) {
      ordinal = this.free.pop() ?? this.paths.length;
      assert(ordinal < MAX_FILES, "file ordinals are used up");
      this.paths[ordinal] = path;
      this.ordinalOf.set(path, ordinal);
    }
    return ordinal;
  }

  /** FLAGS without the operation. Tombstones need no file: nothing masks them. */
  private flagsOf(path: string, tombstones: boolean): number {
    return tombstones ? TOMBSTONE_BIT : this.ordinal(path) << FILE_SHIFT;
  }

  /** Their ordinals may name other files from now on. */
  private release(paths: readonly string[]): void {
    for (const path of paths) {
      const ordinal = this.ordinalOf.get(path);
      if (ordinal === undefined) continue;
      this.ordinalOf.delete(path);
      this.free.push(ordinal);
    }
  }

  /**
   * Where the entities of a batch stand as of the table's snapshot. `keys` is a relation of `connection` with columns
   * ord, tenant_id and entity_id, a row per record; it is read only where the index does not fit its budget.
   */
  async locate(records: Uint32Array, connection: DuckDBConnection, keys: string): Promise<Standing> {
    const { version } = this.table.snapshot;
    if (version !== this.version) this.forget();
    this.version = version;
    if (this.index === undefined && this.fits()) this.index = await this.load(connection);
    if (this.index === undefined) return this.semiJoin(records, connection, keys);
    const offsets = new Int32Array(records.length / WORDS);
    for (let i = 0; i < offsets.length; i++) offsets[i] = this.index.find(records, i * WORDS);
    return { records: this.index.records, offsets };
  }

  private place({ records, ords, path, tombstones }: Placement): void {
    if (this.index === undefined) return;
    const flags = this.flagsOf(decodeURIComponent(path), tombstones);
    const record = new Uint32Array(WORDS);
    for (const [row, ord] of ords.entries()) {
      record.set(records.subarray(ord * WORDS, (ord + 1) * WORDS));
      record[FLAGS] = flags | (record[FLAGS]! & OPERATION_MASK);
      record[ROW] = row;
      this.index.put(record, 0);
    }
    if (this.index.bytes > this.budgetBytes) this.forget();
  }

  /** Reads the records of a file that is not yet part of the table. Undefined without an index. */
  async prepareMove(file: StagedFile, connection: DuckDBConnection): Promise<Relocation | undefined> {
    if (this.index === undefined) return undefined;
    const records = new Uint32Array(file.rows * WORDS);
    let at = 0;
    const path = decodeURIComponent(file.add.path);
    await this.scan(connection, path, 0, (record) => {
      records.set(record, at);
      at += WORDS;
    });
    return { path, records };
  }

  private move(relocation: Relocation | undefined, sources: readonly TableFile[]): void {
    if (this.index === undefined) return;
    if (relocation === undefined) {
      // The index was loaded while the new file was written.
      this.forget();
      return;
    }
    const { path, records } = relocation;
    const place = this.flagsOf(path, false);
    const from = new Set(sources.map((source) => this.ordinalOf.get(source.path)));
    const isFrom = (flags: number) => (flags & TOMBSTONE_BIT) === 0 && from.has(flags >>> FILE_SHIFT);
    for (let at = 0; at < records.length; at += WORDS) {
      records[at + FLAGS] = place | (records[at + FLAGS]! & OPERATION_MASK);
      this.index.move(records, at, isFrom);
    }
    this.release(sources.map((source) => source.path));
  }

  private fits(): boolean {
    const keys = this.table.snapshot.files.reduce((sum, file) => sum + this.keysIn(file), 0);
    return KeyIndex.bytesFor(keys) <= this.budgetBytes;
  }

  private keysIn(file: TableFile): number {
    return file.tombstones ? file.rows : file.rows - file.maskedRows;
  }

  private async load(connection: DuckDBConnection): Promise<KeyIndex> {
    const { files } = this.table.snapshot;
    const index = new KeyIndex(files.reduce((sum, file) => sum + this.keysIn(file), 0));
    for (const file of files) {
      const place = this.flagsOf(file.path, file.tombstones);
      await this.scan(connection, file.path, place, (record) => index.putIfGreater(record, 0));
    }
    return index;
  }

  /** Calls back with the record of every physical row of a file, in row order; the record is reused. */
  private scan(
    connection: DuckDBConnection,
    file: string,
    place: number,
    use: (record: Uint32Array) => void,
  ): Promise<void> {
    return withFiles(this.table, [{ path: file }], ([path]) => this.scanFile(connection, path!, place, use));
  }

  private async scanFile(
    connection: DuckDBConnection,
    path: string,
    place: number,
    use: (record: Uint32Array) => void,
  ): Promise<void> {
    const result = await connection.stream(
      `SELECT ${ORDER_SELECT}, encode(f.tenant_id), encode(f.entity_id)
       FROM read_parquet(${literal(path)}, file_row_number=true, hive_partitioning=false) f`,
    );
    const record = new Uint32Array(WORDS);
    for await (const chunk of chunksOf(result)) {
      const order = orderColumns(chunk);
      const tenants = chunk.getColumnValues(8) as DuckDBBlobValue[];
      const entities = chunk.getColumnValues(9) as DuckDBBlobValue[];
      for (let i = 0; i < chunk.rowCount; i++) {
        fillOrder(record, 0, order, i, place);
        const tenant = tenants[i]!.bytes;
        const entity = entities[i]!.bytes;
        this.keys.put(record, 0, tenant, 0, tenant.length, entity, 0, entity.length);
        use(record);
      }
    }
  }

  private semiJoin(records: Uint32Array, connection: DuckDBConnection, keys: string): Promise<Standing> {
    const { files } = this.table.snapshot;
    this.forget();
    const places = files.map((file) => this.flagsOf(file.path, file.tombstones));
    return withFiles(this.table, files, (paths) =>
      this.joinFiles(records, connection, keys, new Map(paths.map((path, i) => [path, places[i]!]))),
    );
  }

  /** `placeOf`: FLAGS without the operation, by the local path of each file. */
  private async joinFiles(
    records: Uint32Array,
    connection: DuckDBConnection,
    keys: string,
    placeOf: ReadonlyMap<string, number>,
  ): Promise<Standing> {
    const offsets = new Int32Array(records.length / WORDS).fill(-1);
    if (placeOf.size === 0 || records.length === 0) return { records, offsets };
    const result = await connection.stream(
      `SELECT ${ORDER_SELECT}, f.filename, k.ord
       FROM read_parquet([${[...placeOf.keys()].map(literal).join(", ")}],
                         filename=true, file_row_number=true, hive_partitioning=false) f
       JOIN ${keys} k ON f.entity_id = k.entity_id AND f.tenant_id = k.tenant_id`,
    );
    const found = new Uint32Array(records.length);
    const record = new Uint32Array(WORDS);
    for await (const chunk of chunksOf(result)) {
      const order = orderColumns(chunk);
      const names = chunk.getColumnValues(8) as string[];
      const ords = chunk.getColumnValues(9) as number[];
      for (let i = 0; i < chunk.rowCount; i++) {
        fillOrder(record, 0, order, i, placeOf.get(names[i]!)!);
        const ord = ords[i]!;
        const at = ord * WORDS;
        if (offsets[ord]! < 0 || compareOrder(record, 0, found, at) > 0) {
          found.set(record, at);
          offsets[ord] = at;
        }
      }
    }
    return { records: found, offsets };
  }
}

type OrderColumns = (number | null)[][];

const orderColumns = (chunk: DuckDBDataChunk): OrderColumns =>
  Array.from({ length: 8 }, (_, column) => chunk.getColumnValues(column) as (number | null)[]);

function fillOrder(record: Uint32Array, at: number, order: OrderColumns, row: number, place: number): void {
  record[at + VERSION_LO] = order[0]![row]!;
  record[at + VERSION_HI] = order[1]![row]!;
  record[at + CONTENT_LO] = order[3]![row]!;
  record[at + CONTENT_HI] = order[4]![row]!;
  const occurredHi = order[6]![row];
  record[at + OCCURRED_LO] = order[5]![row] ?? 0;
  record[at + OCCURRED_HI] = occurredHi == null ? 0 : occurredHi ^ 0x80000000;
  record[at + FLAGS] = place | order[2]![row]!;
  record[at + ROW] = order[7]![row]!;
}
