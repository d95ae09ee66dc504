"""read_deltalake.py LAKE ANSWERS: the tables of oracle.py's answers by the deltalake package's SQL, as JSON."""

import json
import sys

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from canonical import digest_of


def main():
    lake, answers = sys.argv[1:3]
    readings = {}
    for name, answer in json.load(open(answers, encoding="utf-8")).items():
        path = f"{lake}/{name}"

        def sql(text, version=None):
            table = DeltaTable(path, version=version)
            return pa.table(QueryBuilder().register("t", table).execute(text))

        def micros(scalar):
            return scalar.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py() if pa.types.is_timestamp(scalar.type) else scalar.as_py()

        bounds = {}
        for column in answer["bounds"]:
            found = sql(f'SELECT min("{column}") AS least, max("{column}") AS greatest FROM t')
            bounds[column] = {"min": micros(found.column("least")[0]), "max": micros(found.column("greatest")[0])}
        counts = []
        for probe in answer["filters"]:
            value = f"""arrow_cast({probe['value']}, 'Timestamp(Microsecond, Some("UTC"))')""" if probe["time"] else probe["value"]
            counts.append(sql(f'SELECT count(*) AS n FROM t WHERE "{probe["column"]}" = {value}').column("n")[0].as_py())
        versions = {version: digest_of(sql("SELECT * FROM t", int(version))) for version in answer["versions"]}
        readings[name] = {"versions": versions, "filters": counts, "bounds": bounds}
    print(json.dumps(readings))


main()
