"""Reads a Delta table with the deltalake package, by its SQL path, which honours deletion vectors.

Usage: foreign_reader.py TABLE_FOLDER [SQL over t] -> one JSON object a row on standard output.
Values are as plain.py makes them.
"""

import json
import sys

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from plain import plain


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
