"""Rows in one form, whoever has read them, and a digest over all of them and all of their columns.

NULL is ~, integers are decimal, times microseconds and days since the epoch, floating-point numbers their bits, text and
bytes hexadecimal, decimals unscaled, lists [a,b], maps {k=v,..} by key, structs (a,b) by field name. KernelReader.java
writes the same form.
"""

import hashlib
import struct
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.types as types

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def text_of(value, kind):
    if value is None:
        return "~"
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind):
        return "true" if value else "false"
    if types.is_integer(kind):
        return str(value)
    if types.is_floating(kind):
        return (b"\x7f\xf8" + bytes(6) if value != value else struct.pack(">d", value)).hex()
    if types.is_decimal(kind):
        return str(int(value.scaleb(kind.scale)))
    if isinstance(value, str):
        return value.encode("utf-8").hex()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if types.is_timestamp(kind):
        return str((value.replace(tzinfo=timezone.utc) - EPOCH) // timedelta(microseconds=1))
    if types.is_map(kind):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ",".join(sorted(f"{text_of(k, kind.key_type)}={text_of(v, kind.item_type)}" for k, v in pairs)) + "}"
    if types.is_list(kind) or types.is_large_list(kind):
        return "[" + ",".join(text_of(item, kind.value_type) for item in value) + "]"
    if types.is_struct(kind):
        return "(" + ",".join(text_of(value[f.name], f.type) for f in sorted(kind, key=lambda f: f.name)) + ")"
    raise TypeError(f"no canonical form for {kind}")


def texts_of(column):
    kind = column.type
    if types.is_timestamp(kind):
        column, kind = column.cast(pa.timestamp("us", tz=kind.tz)).cast(pa.int64()), pa.int64()
    elif types.is_date(kind):
        column, kind = column.cast(pa.date32()).cast(pa.int32()), pa.int32()
    elif types.is_list(kind) or types.is_large_list(kind):
        item = kind.value_type
        # Some readers have no type for maps.
        if types.is_struct(item) and {f.name for f in item} == {"key", "value"}:
            kind = pa.map_(item.field("key").type, item.field("value").type)
            return [text_of(v if v is None else [(p["key"], p["value"]) for p in v], kind) for v in column.to_pylist()]
    return [text_of(value, kind) for value in column.to_pylist()]


def digest_of_lines(names, lines):
    """`names` are the columns, sorted; a line is a row's texts in that order, joined by |."""
    digest = hashlib.sha256("\n".join([",".join(names), *sorted(lines)]).encode()).hexdigest()
    return {"rows": len(lines), "digest": digest}


def digest_of(table):
    names = sorted(table.column_names)
    columns = [texts_of(table.column(name)) for name in names]
    return digest_of_lines(names, ["|".join(row) for row in zip(*columns)])
