"""read_polars.py LAKE ANSWERS: the tables of oracle.py's answers by polars.scan_delta, as JSON."""

import datetime
import json
import sys

import polars as pl

from canonical import digest_of

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def main():
    lake, answers = sys.argv[1:3]
    readings = {}
    for name, answer in json.load(open(answers, encoding="utf-8")).items():
        path = f"{lake}/{name}"
        counts = []
        for probe in answer["filters"]:
            value = int(probe["value"])
            if probe["time"]:
                value = EPOCH + datetime.timedelta(microseconds=value)
            counts.append(pl.scan_delta(path).filter(pl.col(probe["column"]) == value).select(pl.len()).collect().item())
        versions = {v: digest_of(pl.scan_delta(path, version=int(v)).collect().to_arrow()) for v in answer["versions"]}
        readings[name] = {"versions": versions, "filters": counts}
    print(json.dumps(readings))


main()
