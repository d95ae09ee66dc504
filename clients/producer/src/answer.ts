import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

/** What became of one event of a request. */
export type EventResult =
  | { readonly accepted: true; readonly partition: string; readonly position: string }
  | {
      readonly accepted: false;
      readonly code: string;
      readonly message: string;
      readonly retryable: boolean;
    };

/** A tributary.v1.PublishResponse, its results decoded when they are asked for. */
export class PublishAnswer {
  readonly accepted: number;
  readonly rejected: number;
  private readonly encoded: readonly Uint8Array[];

  /** Errors: whatever the decoder says where `body` is no PublishResponse. */
  constructor(body: Uint8Array) {
    const reader = new BinaryReader(body);
    const encoded: Uint8Array[] = [];
    let [accepted, rejected] = [0, 0];
    while (reader.pos < reader.len) {
      const [field, type] = reader.tag();
      if (field === 1 && type === WireType.LengthDelimited) encoded.push(reader.bytes());
      else if (field === 2 && type === WireType.Varint) accepted = reader.int32();
      else if (field === 3 && type === WireType.Varint) rejected = reader.int32();
      else reader.skip(type, field);
    }
    this.encoded = encoded;
    this.accepted = accepted;
    this.rejected = rejected;
  }

  /** How many events it speaks of. */
  get count(): number {
    return this.encoded.length;
  }

  /** In the order of the request's events. */
  results(): EventResult[] {
    return this.encoded.map(resultOf);
  }
}

function resultOf(bytes: Uint8Array): EventResult {
  const reader = new BinaryReader(bytes);
  let [accepted, retryable] = [false, false];
  let [partition, position, code, message] = ["", "", "", ""];
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === 1) accepted = reader.bool();
    else if (field === 2) partition = reader.string();
    else if (field === 3) position = reader.string();
    else if (field === 4) code = reader.string();
    else if (field === 5) message = reader.string();
    else if (field === 6) retryable = reader.bool();
    else reader.skip(type, field);
  }
  return accepted ? { accepted, partition, position } : { accepted, code, message, retryable };
}
