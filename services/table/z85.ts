// ZeroMQ RFC 32: 4 bytes become 5 characters. Delta uses it for the UUID of a deletion-vector file.
const ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
const VALUES = new Map([...ALPHABET].map((character, value) => [character, value]));

/** `bytes.length` is a multiple of 4. */
export function encodeZ85(bytes: Buffer): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 4) {
    let value = bytes.readUInt32BE(at);
    let group = "";
    for (let digit = 0; digit < 5; digit++) {
      group = ALPHABET[value % 85]! + group;
      value = Math.floor(value / 85);
    }
    text += group;
  }
  return text;
}

/** Undefined when the text is not Z85. */
export function decodeZ85(text: string): Buffer | undefined {
  if (text.length % 5 !== 0) return undefined;
  const bytes = Buffer.alloc((text.length / 5) * 4);
  for (let at = 0; at < text.length; at += 5) {
    let value = 0;
    for (let digit = 0; digit < 5; digit++) {
      const next = VALUES.get(text[at + digit]!);
      if (next === undefined) return undefined;
      value = value * 85 + next;
    }
    if (value > 0xffffffff) return undefined;
    bytes.writeUInt32BE(value, (at / 5) * 4);
  }
  return bytes;
}

export function uuidToZ85(uuid: string): string {
  return encodeZ85(Buffer.from(uuid.replaceAll("-", ""), "hex"));
}

export function z85ToUuid(text: string): string | undefined {
  const hex = decodeZ85(text)?.toString("hex");
  return hex?.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
