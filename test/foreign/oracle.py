"""oracle.py LAKE OUT: what every table of the lake holds, found without any Delta library and without our engine.

Reads the log twice, from its first commit and from the newest log checkpoint, and demands that both say the same;
decodes deletion vectors, reads data files with pyarrow, and holds each file against its own statistics. OUT becomes
JSON: table -> "versions": {version: {"rows", "digest"}} for the newest version and an older one, "milliseconds" the same
with times to the millisecond, "filters" and "bounds" of the columns that have statistics, "times" of the commits.
"""

import glob
import json
import os
import re
import struct
import sys
import urllib.parse
import uuid
import zlib

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyroaring import BitMap64

from canonical import digest_of

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
PRIMITIVES = {
    "string": pa.string(), "binary": pa.binary(), "boolean": pa.bool_(), "byte": pa.int8(), "short": pa.int16(),
    "integer": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(), "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


def type_of(delta):
    if isinstance(delta, str):
        decimal = re.fullmatch(r"decimal\((\d+),(\d+)\)", delta)
        return pa.decimal128(int(decimal[1]), int(decimal[2])) if decimal else PRIMITIVES[delta]
    if delta["type"] == "array":
        return pa.list_(type_of(delta["elementType"]))
    if delta["type"] == "map":
        return pa.map_(type_of(delta["keyType"]), type_of(delta["valueType"]))
    return pa.struct([(field["name"], type_of(field["type"])) for field in delta["fields"]])


def z85(text):
    out = b""
    for at in range(0, len(text), 5):
        number = 0
        for character in text[at : at + 5]:
            number = number * 85 + Z85.index(character)
        out += struct.pack(">I", number)
    return out


def masked(table, vector):
    if vector is None:
        return []
    text = vector["pathOrInlineDv"]
    assert vector["storageType"] == "u", "vectors lie in files"
    name = f"deletion_vector_{uuid.UUID(bytes=z85(text[-20:]))}.bin"
    with open(os.path.join(table, text[:-20], name), "rb") as file:
        data = file.read()
    at, size = vector["offset"], vector["sizeInBytes"]
    assert data[0] == 1 and struct.unpack_from(">I", data, at)[0] == size
    payload = data[at + 4 : at + 4 + size]
    assert zlib.crc32(payload) == struct.unpack_from(">I", data, at + 4 + size)[0]
    assert struct.unpack_from("<I", payload)[0] == 1681511377
    rows = list(BitMap64.deserialize(payload[4:]))
    assert len(rows) == vector["cardinality"]
    return rows


def id_of(action):
    vector = action.get("deletionVector")
    return action["path"] + " " + ("" if vector is None else f"{vector['pathOrInlineDv']}@{vector.get('offset')}")


def log_of(table, suffix):
    names = glob.glob(glob.escape(os.path.join(table, "_delta_log")) + "/" + "[0-9]" * 20 + suffix)
    return {int(os.path.basename(name)[:20]): name for name in names}


class State:
    def __init__(self):
        self.live, self.meta, self.protocol, self.domains = {}, None, None, {}

    def apply(self, actions, strict=True):
        for action in actions:
            if action.get("remove") and strict:
                del self.live[id_of(action["remove"])]
        for action in actions:
            if action.get("add"):
                self.live[id_of(action["add"])] = action["add"]
            self.meta = action.get("metaData") or self.meta
            self.protocol = action.get("protocol") or self.protocol
            domain = action.get("domainMetadata")
            if domain and domain["removed"]:
                self.domains.pop(domain["domain"], None)
            elif domain:
                self.domains[domain["domain"]] = domain["configuration"]

    def said(self):
        live = {key: json.loads(add["stats"]) for key, add in self.live.items()}
        features = [sorted(self.protocol.get(name) or []) for name in ("readerFeatures", "writerFeatures")]
        return live, self.meta["schemaString"], dict(self.meta["configuration"]), features, self.domains


def actions_of(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def replay(table, upto):
    commits = log_of(table, ".json")
    state = State()
    for version in range(upto + 1):
        state.apply(actions_of(commits[version]))
    checkpoints = [version for version in log_of(table, ".checkpoint.parquet") if version <= upto]
    if checkpoints:
        start = max(checkpoints)
        other = State()
        other.apply(pq.read_table(log_of(table, ".checkpoint.parquet")[start]).to_pylist(maps_as_pydicts="strict"), False)
        for version in range(start + 1, upto + 1):
            other.apply(actions_of(commits[version]))
        assert other.said() == state.said(), f"{table}: the log checkpoint of {start} says something else"
    return state, bool(checkpoints)


def check_statistics(add, data):
    stats = json.loads(add["stats"])
    assert stats["numRecords"] == data.num_rows
    for name in stats.get("minValues", {}):
        column = data.column(name)
        least, greatest = stats["minValues"][name], stats["maxValues"][name]
        if pa.types.is_timestamp(column.type):
            least, greatest = (pa.scalar(v).cast(column.type) for v in (least, greatest))
        else:
            least, greatest = pa.scalar(least, column.type), pa.scalar(greatest, column.type)
        found = pc.min_max(column)
        assert found["min"] == least and found["max"] == greatest, f"{add['path']}: bounds of {name}"
        assert stats["nullCount"][name] == column.null_count


def read(table, state):
    fields = json.loads(state.meta["schemaString"])["fields"]
    assert all(field["nullable"] for field in fields), "a required column asks for the feature invariants"
    partitions = set(state.meta["partitionColumns"])
    schema = pa.schema([(field["name"], type_of(field["type"])) for field in fields])
    parts = [schema.empty_table()]
    for add in state.live.values():
        file = pq.ParquetFile(os.path.join(table, urllib.parse.unquote(add["path"])))
        assert file.metadata.metadata[b"org.apache.spark.version"] == b"3.5.0"
        data = file.read()
        check_statistics(add, data)
        gone = masked(table, add.get("deletionVector"))
        keep = [True] * data.num_rows
        for row in gone:
            keep[row] = False
        data = data.filter(pa.array(keep, pa.bool_()))
        columns = []
        for name, kind in zip(schema.names, schema.types):
            if name in partitions:
                columns.append(pa.array([add["partitionValues"][name]] * data.num_rows, kind))
            elif name in data.column_names:
                columns.append(data.column(name).cast(kind))
            else:
                assert data.num_rows == 0, "only tombstones lack columns"
                columns.append(pa.array([], kind))
        parts.append(pa.table(columns, schema=schema))
    return pa.concat_tables(parts)


def in_milliseconds(data):
    for at, kind in enumerate(data.schema.types):
        if pa.types.is_timestamp(kind):
            rounded = pc.round_temporal(data.column(at), unit="millisecond")
            data = data.set_column(at, data.schema.names[at], rounded)
    return data


def commit_times(table, commits):
    times = []
    for version in sorted(commits):
        info = actions_of(commits[version])[0]["commitInfo"]
        times.append(info["inCommitTimestamp"])
        assert info["operationMetrics"]["numOutputRows"].isdigit()
    assert times == sorted(set(times)), f"{table}: times do not grow"
    return times


def probes(data, columns):
    """Filters whose answer depends on bounds being right, and least and greatest values."""
    filters, bounds = [], {}
    for name in columns:
        column = data.column(name)
        if not (pa.types.is_timestamp(column.type) or pa.types.is_int64(column.type)):
            continue
        numbers = column.cast(pa.int64()).drop_null()
        values = sorted(set(numbers.to_pylist()))
        if not values:
            continue
        bounds[name] = {"min": values[0], "max": values[-1]}
        for value in {values[0], values[-1]}:
            count = pc.sum(pc.equal(numbers, value)).as_py()
            filters.append({"column": name, "time": pa.types.is_timestamp(column.type), "value": str(value), "rows": count})
    return filters, bounds


def main():
    lake, out = sys.argv[1:3]
    answer = {}
    for log in sorted(glob.glob(glob.escape(lake) + "/**/_delta_log", recursive=True)):
        if not os.listdir(log):
            continue
        table = os.path.dirname(log)
        commits = log_of(table, ".json")
        newest = max(commits)
        versions, milliseconds = {}, {}
        for version in sorted({newest, newest * 2 // 3}):
            state, checkpointed = replay(table, version)
            data = read(table, state)
            versions[str(version)] = digest_of(data)
            milliseconds[str(version)] = digest_of(in_milliseconds(data))
        columns = state.meta and dict(state.meta["configuration"])["delta.dataSkippingStatsColumns"].split(",")
        filters, bounds = probes(data, columns)
        answer[os.path.relpath(table, lake)] = {
            "versions": versions,
            "milliseconds": milliseconds,
            "newest": newest,
            "checkpointed": checkpointed,
            "vectors": sum("deletionVector" in add for add in state.live.values()),
            "filters": filters,
            "bounds": bounds,
            "times": commit_times(table, commits),
        }
    with open(out, "w", encoding="utf-8") as file:
        json.dump(answer, file)


main()
