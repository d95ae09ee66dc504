"""Reads a Delta table with the deltalake package, by its SQL path, which honours deletion vectors.

Usage: foreign_reader.py TABLE_FOLDER [SQL over t] -> one JSON object a row on standard output.
64-bit integers are text, times ISO 8601 with microseconds, bytes hex, maps lists of pairs.
"""

import datetime
import decimal
import json
import sys

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder


def plain(value):
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, decimal.Decimal)):
        return str(value)
    if isinstance(value, float):
        return value
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"no plain form for {type(value)}")


def main() -> None:
    folder = sys.argv[1]
    sql = sys.argv[2] if len(sys.argv) > 2 else "SELECT * FROM t"
    result = QueryBuilder().register("t", DeltaTable(folder)).execute(sql)
    table = pa.table(result)
    out = sys.stdout
    for batch in table.to_batches(max_chunksize=8192):
        for row in batch.to_pylist():
            out.write(json.dumps(plain(row), ensure_ascii=False))
            out.write("\n")


main()
